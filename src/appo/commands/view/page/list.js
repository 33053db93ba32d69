// The questions of a step: filters, search, and the list.

// Whether a trajectory passes the filters; an empty filter lets all pass.
function passes(trajectory, state, hits) {
  const at = (name) => Number(state[name]);
  return (
    (state.min === '' || (trajectory.reward ?? -Infinity) >= at('min')) &&
    (state.max === '' || (trajectory.reward ?? Infinity) <= at('max')) &&
    (state.tool === '' || trajectory.tools.includes(state.tool)) &&
    (state.failure === '' || failsBy(trajectory, state.failure)) &&
    (state.short === '' || trajectory.length >= at('short')) &&
    (state.long === '' || trajectory.length <= at('long')) &&
    (state.kind === '' || (trajectory.parent === null) === (state.kind === 'root')) &&
    (hits === null || hits.has(trajectory.id))
  );
}

const failsBy = (trajectory, kind) =>
  kind === 'cut' ? trajectory.finish !== 'eos' : kind === 'any' ? trajectory.failures.length > 0 : trajectory.failures.includes(kind);

const FILTERS = ['min', 'max', 'tool', 'failure', 'short', 'long', 'kind', 's'];
const isFiltered = (state) => FILTERS.some((name) => state[name] !== '');

// Questions with a trajectory that passes, and which ones pass; `hits` are those with the text, null without a search.
function filtered(index, state, hits) {
  if (!isFiltered(state)) return { prompts: index.prompts, matches: null };
  const matches = new Set();
  const prompts = index.prompts.filter((prompt) => {
    const passing = prompt.trajectories.filter((trajectory) => passes(trajectory, state, hits));
    for (const trajectory of passing) matches.add(trajectory.id);
    return passing.length > 0;
  });
  return { prompts, matches };
}

// Searches the text of all trajectories of a step; reads its trees one by one, so that the page stays awake.
function useSearch(base, index, text) {
  const [found, setFound] = useState({ text: '', hits: null, done: 0 });
  useEffect(() => {
    if (!index || text === '') return setFound({ text: '', hits: null, done: 0 });
    let isCurrent = true;
    const wanted = text.toLowerCase();
    const search = async () => {
      const hits = new Set();
      for (let i = 0; i < index.prompts.length && isCurrent; i++) {
        const page = prepare(await load(`${base}/tree/${i}`));
        const isAsked = (index.prompts[i].question ?? '').toLowerCase().includes(wanted);
        for (const node of page.order) {
          if (isAsked || plainText(page, node).toLowerCase().includes(wanted)) hits.add(node.id);
        }
        if (isCurrent) setFound({ text, hits: new Set(hits), done: i + 1 });
      }
    };
    const timer = setTimeout(search, 200);
    return () => {
      isCurrent = false;
      clearTimeout(timer);
    };
  }, [base, index, text]);
  return text === '' ? { hits: null } : found.text === text ? found : { hits: new Set(), done: 0 };
}

function Sidebar({ index, shown, matches, search, state, go, current }) {
  const all = index.prompts.flatMap((prompt) => prompt.trajectories);
  const kinds = (name) => [...new Set(all.flatMap((trajectory) => trajectory[name]))].filter(Boolean).sort();
  const set = (name) => (event) => go({ [name]: event.target.value });
  const count = matches === null ? all.length : matches.size;
  return html`<aside class="sidebar">
    <input id="search" type="search" placeholder="search in text  ( / )" value=${state.s} onInput=${set('s')} aria-label="search in text" />
    <div class="filters">
      <label>reward<span class="range"><input type="number" step="any" placeholder="from" value=${state.min} onInput=${set('min')} />
        <input type="number" step="any" placeholder="to" value=${state.max} onInput=${set('max')} /></span></label>
      <label>tokens<span class="range"><input type="number" placeholder="from" value=${state.short} onInput=${set('short')} />
        <input type="number" placeholder="to" value=${state.long} onInput=${set('long')} /></span></label>
      <${Choice} label="tool" value=${state.tool} onChange=${set('tool')} choices=${kinds('tools').map((name) => [name, name])} />
      <${Choice} label="failure" value=${state.failure} onChange=${set('failure')}
        choices=${[['any', 'any tool failure'], ...kinds('failures').map((name) => [name, name]), ['cut', 'cut off']]} />
      <${Choice} label="kind" value=${state.kind} onChange=${set('kind')} choices=${[['root', 'roots'], ['branch', 'branches']]} />
    </div>
    <p class="quiet count">
      ${shown.length} of ${index.prompts.length} questions, ${count} trajectories
      ${search.hits && search.done < index.prompts.length && html` · searching ${search.done}/${index.prompts.length}`}
      ${isFiltered(state) &&
      html` · <button class="plain" onClick=${() => go(Object.fromEntries(FILTERS.map((name) => [name, ''])))}>clear</button>`}
    </p>
    <ol class="prompts">
      ${shown.map((prompt) => html`<${Question} key=${prompt.id} prompt=${prompt} isCurrent=${prompt.id === current} matches=${matches} go=${go} />`)}
    </ol>
  </aside>`;
}

const Choice = ({ label, value, onChange, choices }) =>
  html`<label>${label}<select value=${value} onChange=${onChange}>
    <option value="">all</option>
    ${choices.map(([name, text]) => html`<option key=${name} value=${name}>${text}</option>`)}
  </select></label>`;

// A question with one bar for each trajectory, as high as its reward.
function Question({ prompt, isCurrent, matches, go }) {
  const ref = useRef(null);
  const scale = rewardScale(prompt.trajectories);
  useEffect(() => {
    if (isCurrent) ref.current.scrollIntoView({ block: 'nearest' });
  }, [isCurrent]);
  return html`<li ref=${ref} class=${isCurrent ? 'current' : ''}>
    <button onClick=${() => go({ q: prompt.id, t: '' })} aria-current=${isCurrent}>
      <span class="question">${prompt.question ?? 'not public'}</span>
      <span class="bars" aria-hidden="true">
        ${prompt.trajectories.map(
          (each) =>
            html`<i
              key=${each.id}
              class=${each.parent === null ? 'root' : 'branch'}
              style=${{
                height: `${4 + 12 * scale.share(each.reward)}px`,
                background: scale.color(each.reward),
                opacity: matches && !matches.has(each.id) ? 0.25 : 1,
              }}
            />`,
        )}
      </span>
    </button>
  </li>`;
}
