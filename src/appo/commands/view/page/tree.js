// The picture of a prompt's trees: a line a trajectory, along its tokens.

const ROW = 26;
const LEFT = 58;
const RIGHT = 96;
const TOP = 10;

function useWidth() {
  const ref = useRef(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(ref.current);
    setWidth(Math.floor(ref.current.clientWidth));
    return () => observer.disconnect();
  }, []);
  return [ref, width];
}

function Tree({ page, selected, value, matches, onSelect }) {
  const [ref, width] = useWidth();
  const longest = useMemo(() => foldedLengths(page), [page]);
  const height = TOP + ROW * page.order.length;
  const x = (place) => LEFT + (Math.max(1, width - LEFT - RIGHT) * place) / longest;
  const scale = useMemo(() => rewardScale(page.trajectories), [page]);
  return html`<div class="tree" ref=${ref} style=${{ height: `${height}px` }}>
    ${width > 0 &&
    html`<svg width=${width} height=${height} role="tree" aria-label="trajectories of the question">
      ${page.order.map((node) => html`<${Drop} key=${`d${node.id}`} node=${node} x=${x} scale=${scale} />`)}
      ${page.order.map(
        (node) =>
          html`<${Line}
            key=${node.id}
            node=${node}
            x=${x}
            width=${width}
            scale=${scale}
            isSelected=${node === selected}
            isDimmed=${matches && !matches.has(node.id)}
            onSelect=${onSelect}
          />`,
      )}
    </svg>`}
    <${Strips} page=${page} width=${width} height=${height} x=${x} value=${value} />
  </div>`;
}

const middleOf = (node) => TOP + ROW * node.row + ROW / 2;

const lineWidth = (scale, node) => 2 + 5 * scale.share(node.reward);

// From the parent's line down to the branch's own.
function Drop({ node, x, scale }) {
  if (!node.parentNode) return null;
  const at = x(placeOf(node, node.start));
  const path = `M${at - 5},${middleOf(node.parentNode)} Q${at - 5},${middleOf(node)} ${at + 3},${middleOf(node)}`;
  return html`<path
    class="drop"
    d=${path}
    style=${{ stroke: scale.color(node.reward), strokeWidth: lineWidth(scale, node) / 2 }}
  />`;
}

function Line({ node, x, width, scale, isSelected, isDimmed, onSelect }) {
  const y = middleOf(node);
  const color = scale.color(node.reward);
  const [from, to] = [x(node.places[0]), x(node.places[node.tokens.length])];
  const kind = ['line', isSelected && 'selected', isDimmed && 'dimmed'].filter(Boolean).join(' ');
  return html`<g class=${kind} role="treeitem" aria-selected=${isSelected} onClick=${() => onSelect(node)}>
    <title>${describe(node)}</title>
    <rect class="hit" x="0" y=${y - ROW / 2} width=${width} height=${ROW} rx="5" />
    <text class="name" x=${LEFT - 10} y=${y + 4}>${node.name}</text>
    <line x1=${from} x2=${to} y1=${y} y2=${y} style=${{ stroke: color, strokeWidth: lineWidth(scale, node) }} />
    ${node.given.map(([start, end]) => html`<${Fold} key=${start} node=${node} x=${x} y=${y} start=${start} end=${end} />`)}
    ${forks(node).map(
      ([position, children]) =>
        html`<${Fork} key=${position} at=${x(placeOf(node, position))} y=${y} of=${children} onSelect=${onSelect} />`,
    )}
    <circle class="end" cx=${to + 9} cy=${y} r="4.5" style=${{ fill: node.finish === 'eos' ? color : 'none', stroke: color }} />
    <text class="reward" x=${to + 19} y=${y + 4}>${reward(node.reward)}${node.finish === 'eos' ? '' : ' cut'}</text>
  </g>`;
}

function describe(node) {
  const calls = node.calls.length ? `, ${node.calls.length} own tool call${node.calls.length > 1 ? 's' : ''}` : '';
  const ending = { eos: 'ended by the policy', length: 'cut at the length limit', tool_limit: 'cut at the call limit' };
  return `${title(node)}: reward ${reward(node.reward)}, ${node.tokens.length} own tokens${calls}, ${ending[node.finish]}`;
}

// A stretch that no policy has sampled: what a tool said.
function Fold({ node, x, y, start, end }) {
  const calls = node.calls.filter((call) => call.position >= start && call.position < end);
  const failed = calls.some((call) => call.failure);
  const [from, to] = [x(placeOf(node, start)), x(node.places[end - node.start])];
  const said = calls.map((call) => `${call.tool}(${call.argument}) → ${call.failure ?? call.result}`).join('\n');
  return html`<rect class=${failed ? 'fold failed' : 'fold'} x=${from} y=${y - 6} width=${Math.max(3, to - from)} height="12" rx="3">
    <title>${said || `${end - start} tokens that were not sampled`}</title>
  </rect>`;
}

function Fork({ at, y, of, onSelect }) {
  const open = (event) => {
    event.stopPropagation();
    onSelect(of[0]);
  };
  return html`<g class="fork" onClick=${open}>
    <circle cx=${at - 5} cy=${y} r=${of.length > 1 ? 6 : 4.5} />
    ${of.length > 1 && html`<text x=${at - 5} y=${y + 3}>${of.length}</text>`}
    <title>${of.length > 1 ? `${of.length} branches leave` : `${title(of[0])} leaves`}; score ${number(of[0].score)}</title>
  </g>`;
}

// The chosen value of every token above its line. There may be tens of thousands: they are painted, not built.
function Strips({ page, width, height, x, value }) {
  const ref = useRef(null);
  useLayoutEffect(() => {
    const canvas = ref.current;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const paper = canvas.getContext('2d');
    paper.scale(ratio, ratio);
    const full = fullSize(page.trajectories, value);
    for (const node of page.order) {
      const column = node.values[value.name];
      if (!column) continue;
      const y = middleOf(node) - ROW / 2 + 1;
      for (const cell of cells(node, column, x, value)) {
        paper.fillStyle = wash(cell.value, value, full) || 'transparent';
        paper.fillRect(cell.from, y, Math.max(1, cell.to - cell.from), 6);
      }
    }
  }, [page, width, height, value]);
  return html`<canvas ref=${ref} style=${{ width: `${width}px`, height: `${height}px` }} />`;
}

// Tokens that fall on one pixel share a cell, which shows the one farthest from the middle.
function* cells(node, column, x, value) {
  let cell = null;
  for (let i = 0; i < column.length; i++) {
    if (column[i] === null) continue;
    const [from, to] = [x(node.places[i]), x(node.places[i + 1])];
    const isFarther = cell && Math.abs(column[i] - middle(value)) > Math.abs(cell.value - middle(value));
    if (cell && to - cell.from < 1) {
      cell.to = to;
      if (isFarther) cell.value = column[i];
    } else {
      if (cell) yield cell;
      cell = { from, to, value: column[i] };
    }
  }
  if (cell) yield cell;
}
