// The text of a trajectory, token by token, colored by a value.

const SHARED_SHOWN = 48; // tokens before a fork that stand above both texts

// Builds the spans by hand: there are thousands, and a change of color must not build them anew.
function TokenText({ page, node, from, to, value, full, onFork, mark }) {
  const ref = useRef(null);
  const spans = useRef([]);
  useLayoutEffect(() => {
    spans.current = [];
    const parts = [];
    for (const piece of pieces(node, from, to)) buildPiece(page, piece, spans.current, parts, onFork, mark);
    ref.current.replaceChildren(...parts);
  }, [page, node, from, to, mark]);
  useLayoutEffect(() => {
    for (const { span, owner, position } of spans.current) {
      span.style.backgroundColor = wash(valueOf(owner, value.name, position), value, full);
    }
  }, [page, node, from, to, mark, value, full]);
  return html`<div class="tokens" ref=${ref} />`;
}

function buildPiece(page, piece, spans, parts, onFork, mark) {
  const forksAt = onFork ? new Map(forks(piece.node)) : new Map();
  for (let position = piece.from; position < piece.to; ) {
    const run = piece.node.givenAt(position);
    if (run) {
      const end = Math.min(run[1], piece.to);
      parts.push(foldOf(page, piece.node, position, end, run));
      position = end;
      continue;
    }
    const children = forksAt.get(position);
    if (children) parts.push(forkButton(children, onFork));
    const span = document.createElement('span');
    span.textContent = textOf(page, piece.node, position);
    span.dataset.page = page.number;
    span.dataset.node = piece.node.id;
    span.dataset.position = position;
    span.className = position === mark ? 'token chosen' : 'token';
    spans.push({ span, owner: piece.node, position });
    parts.push(span);
    position++;
  }
}

function forkButton(children, onFork) {
  const button = document.createElement('button');
  button.className = 'forkmark';
  button.textContent = children.length > 1 ? `↳${children.length}` : '↳';
  button.title = `${children.map(title).join(', ')}: drawn anew here`;
  button.onclick = () => onFork(children[0]);
  return button;
}

// What a tool said, folded.
function foldOf(page, node, from, to, run) {
  const details = document.createElement('details');
  const summary = document.createElement('summary');
  const calls = node.calls.filter((call) => call.position >= run[0] && call.position < run[1]);
  const names = calls.map((call) => (call.failure ? `${call.tool} ✗ ${call.failure}` : call.tool)).join(', ');
  summary.textContent = `${names || 'not sampled'} · ${to - from} tokens`;
  details.className = calls.some((call) => call.failure) ? 'result failed' : 'result';
  let text = '';
  for (let position = from; position < to; position++) text += textOf(page, node, position);
  details.append(summary, text);
  return details;
}

// ---- a trajectory, or a branch beside its parent -----------------------------------------------------------------------
function Texts({ page, node, value, onSelect }) {
  const full = useMemo(() => fullSize(page.trajectories, value), [page, value]);
  const [isWhole, setWhole] = useState(false);
  const common = { page, value, full };
  if (!node.parentNode) {
    return html`<div class="texts">
      <h3>${title(node)} <${Outcome} node=${node} /></h3>
      <${TokenText} ...${common} node=${node} from=${0} to=${node.end} onFork=${onSelect} />
    </div>`;
  }
  const start = isWhole ? 0 : Math.max(0, node.start - SHARED_SHOWN);
  return html`<div class="texts">
    <h3>
      shared by both, ${node.start} tokens
      ${node.start > SHARED_SHOWN &&
      html`<button class="plain" onClick=${() => setWhole(!isWhole)}>${isWhole ? 'fold' : 'show all'}</button>`}
    </h3>
    <div class="shared">
      ${start > 0 && html`<span class="dots">… </span>`}
      ${node.start > 0
        ? html`<${TokenText} ...${common} node=${node} from=${start} to=${node.start} />`
        : html`<span class="dots">nothing: the branch leaves at the first token</span>`}
    </div>
    <div class="pair">
      ${[node.parentNode, node].map(
        (side) => html`<section key=${side.id}>
          <h3>
            <button class="plain" onClick=${() => onSelect(side)}>${title(side)}</button> <${Outcome} node=${side} />
          </h3>
          <${TokenText}
            ...${common}
            node=${side}
            from=${node.start}
            to=${side.end}
            onFork=${onSelect}
            mark=${node.start}
          />
        </section>`,
      )}
    </div>
  </div>`;
}

function Outcome({ node }) {
  const parts = Object.entries(node.parts).map(([name, each]) => `${name} ${number(each)}`);
  return html`<span class="outcome">
    reward ${reward(node.reward)}${parts.length > 0 && ` (${parts.join(', ')})`}
    ${node.finish !== 'eos' && ` · cut at the ${node.finish === 'length' ? 'length' : 'call'} limit`}
    ${node.reason && html`<span class="reason"> · ${node.reason}</span>`}
  </span>`;
}

// ---- all values of the token below the pointer -------------------------------------------------------------------------
function Tooltip({ page }) {
  const ref = useRef(null);
  const [found, setFound] = useState(null);
  useEffect(() => {
    const move = (event) => {
      const span = event.target.closest?.('.token');
      const isHere = span && Number(span.dataset.page) === page.number;
      const node = isHere && page.byId.get(Number(span.dataset.node));
      if (!node) return setFound(null);
      const box = span.getBoundingClientRect();
      return setFound({ node, position: Number(span.dataset.position), left: box.left, top: box.bottom });
    };
    document.addEventListener('pointerover', move);
    return () => document.removeEventListener('pointerover', move);
  }, [page]);
  useLayoutEffect(() => {
    if (!found) return;
    const box = ref.current;
    const isLow = found.top + box.offsetHeight + 8 > window.innerHeight;
    box.style.left = `${Math.max(4, Math.min(found.left, window.innerWidth - box.offsetWidth - 8))}px`;
    box.style.top = `${isLow ? Math.max(4, found.top - box.offsetHeight - 26) : found.top + 4}px`;
  }, [found]);
  if (!found) return null;
  const { node, position } = found;
  const reasons = reasonsAt(page, node, position);
  return html`<div class="tooltip" ref=${ref} role="tooltip">
    <b class="mono">${JSON.stringify(textOf(page, node, position))}</b>
    <span class="quiet"> token ${position} of ${title(ownerAt(node, position))}</span>
    <table>
      ${VALUES.map(
        (value) =>
          html`<tr key=${value.name}>
            <td>${value.label}</td>
            <td class="num">${number(valueOf(node, value.name, position))}</td>
          </tr>`,
      )}
    </table>
    ${reasons.length > 0 && html`<div class="quiet">no branch point: ${reasons.join(', ')}</div>`}
  </div>`;
}
