// What stands around the trees: the line on top, the question, the legend, keys and help.

function useTheme() {
  const [theme, set] = useState(document.documentElement.dataset.theme ?? '');
  const setTheme = () => {
    const isDark = theme === 'dark' || (theme === '' && matchMedia('(prefers-color-scheme: dark)').matches);
    document.documentElement.dataset.theme = isDark ? 'light' : 'dark';
    set(document.documentElement.dataset.theme);
  };
  return [theme, setTheme];
}

function Header({ state, go, overviews, left, value, error, setHelp, setTheme }) {
  const steps = overviews[left.run].steps;
  const at = Math.max(0, left.keys.indexOf(left.step));
  const move = (to) => go({ step: steps[Math.min(Math.max(to, 0), steps.length - 1)].key, t: '' });
  const tabs = [['trees', 'Trees'], ['curves', 'Curves'], ['compare', 'Compare']];
  return html`<header>
    <b class="brand">appo</b>
    ${overviews.length > 1 && state.tab === 'trees'
      ? html`<select aria-label="run" value=${String(left.run)} onChange=${(event) => go({ run: event.target.value, t: '' })}>
          ${overviews.map((each, i) => html`<option key=${i} value=${String(i)}>${'AB'[i]}: ${each.name}</option>`)}
        </select>`
      : html`<span class="run">${overviews.map((each) => each.name).join(' | ')}</span>`}
    <nav>
      ${tabs.map(([name, text]) => html`<button key=${name} class=${state.tab === name ? 'tab current' : 'tab'} onClick=${() => go({ tab: name })}>${text}</button>`)}
    </nav>
    ${state.tab === 'trees' &&
    html`<span class="steps">
      <button class="arrow" title="earlier step  ( [ )" onClick=${() => move(at - 1)} disabled=${at === 0}>‹</button>
      <input type="range" aria-label="step" min="0" max=${steps.length - 1} value=${at} onInput=${(event) => move(Number(event.target.value))} />
      <button class="arrow" title="later step  ( ] )" onClick=${() => move(at + 1)} disabled=${at === steps.length - 1}>›</button>
      <span class="stepname">${stepName(steps[at])}</span>
    </span>`}
    ${state.tab !== 'curves' &&
    html`<label class="metric" title=${value.help}
      >color
      <select value=${value.name} onChange=${(event) => go({ v: event.target.value })}>
        ${VALUES.map((each) => html`<option key=${each.name} value=${each.name}>${each.label}</option>`)}
      </select></label
    >`}
    <span class="spring"></span>
    ${error ? html`<span class="notice">${error}</span>` : IS_SERVED && html`<span class="live" title="new iterations appear as they come">● following</span>`}
    <button class="plain" title="light or dark  ( d )" onClick=${setTheme}>◐</button>
    <button class="plain" title="keys  ( ? )" onClick=${() => setHelp(true)}>?</button>
  </header>`;
}

// The question, and a slider through the steps that ask it.
function Question1({ page, left, state, go, version }) {
  const { prompt } = page;
  const { value: asked } = useBlock(`${left.run}/asked`, version);
  const steps = (asked?.[prompt.id] ?? [left.step]).filter((key) => left.keys.includes(key));
  const at = steps.indexOf(left.step);
  return html`<div class="card asked">
    <div class="questiontext">${prompt.question ?? 'The question is not public: values alone are shown.'}</div>
    <div class="quiet">
      ${prompt.answers && html`expected: <b>${prompt.answers.join(' or ')}</b> · `}
      ${prompt.source && `${prompt.source} · `}${page.trajectories.length} trajectories
      ${steps.length > 1
        ? html` · <label class="again">asked in ${steps.length} steps
            <input type="range" min="0" max=${steps.length - 1} value=${at} aria-label="step of this question"
              onInput=${(event) => go({ step: steps[Number(event.target.value)], q: prompt.id, t: '' })} />
            ${left.step.replace('-', ' ')}</label>`
        : ' · asked in this step alone'}
      ${page.closedBy && page.order.every((each) => !each.children.length) && html` · no branches: ${page.closedBy}`}
    </div>
  </div>`;
}

function Legend({ value, page }) {
  const full = useMemo(() => fullSize(page.trajectories, value), [page, value]);
  const isThere = page.trajectories.some((node) => node.values[value.name]);
  const center = middle(value);
  const lowest = value.scale === 'from_zero' ? 0 : center - full;
  const marks = [0, 1, 2, 3, 4].map((each) => lowest + ((center + full - lowest) * each) / 4);
  const shades = marks.map((each) => wash(each, value, full) || 'transparent');
  return html`<div class="legendbar">
    <b>${value.label}</b>
    ${isThere
      ? !full
        ? html`<span class="quiet">is ${number(center)} everywhere</span>`
        : html`<span class="num">${number(marks[0])}</span>
          <i class="ramp">${shades.map((shade, i) => html`<i key=${i} style=${{ background: shade }} />`)}</i>
          <span class="num">${number(marks[marks.length - 1])}</span>`
      : html`<span class="notice">not in this step's file</span>`}
    <span class="quiet help">${value.help}</span>
    <span class="quiet keynote"><i class="bad" />low <i class="good" />high reward · <i class="foldkey" /> tool result</span>
  </div>`;
}

const KEYS = [
  ['j k', 'next, previous tree'],
  ['n p', 'next, previous fork: a branch beside its parent'],
  ['u', 'up: the trajectory that a branch left'],
  ['m M', 'next, previous value that colors'],
  ['[ ]', 'earlier, later step'],
  ['1 2 3', 'trees, curves, compare'],
  ['/', 'search in text'],
  ['d', 'light or dark'],
  ['?  Esc', 'this help; close'],
];

const Help = ({ onClose }) =>
  html`<div class="veil" onClick=${onClose}>
    <div class="card help" role="dialog" aria-label="keys">
      <h3>Keys</h3>
      <table>${KEYS.map(([key, text]) => html`<tr key=${key}><td><kbd>${key}</kbd></td><td>${text}</td></tr>`)}</table>
      <p class="quiet">The address holds all that you have chosen: copy it to show somebody this very view.</p>
    </div>
  </div>`;

// The next of some things in a circle.
const turned = (list, current, by) => list[(list.indexOf(current) + by + list.length) % list.length];

function useKeys(view) {
  const latest = useRef(view);
  latest.current = view;
  useEffect(() => {
    const press = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.matches?.('input, select, textarea')) {
        if (event.key === 'Escape') event.target.blur();
        return;
      }
      if (act(event.key, latest.current)) event.preventDefault();
    };
    addEventListener('keydown', press);
    return () => removeEventListener('keydown', press);
  }, []);
}

// Whether a key means something here.
function act(key, { state, go, left, shown, prompt, page, node, open, setHelp, setTheme }) {
  const actions = {
    j: () => prompt && go({ q: turned(shown, prompt, 1).id, t: '' }),
    k: () => prompt && go({ q: turned(shown, prompt, -1).id, t: '' }),
    n: () => page && openFork(page, node, 1, open),
    p: () => page && openFork(page, node, -1, open),
    u: () => node?.parentNode && open(node.parentNode),
    m: () => go({ v: turned(VALUES, VALUES.find((each) => each.name === state.v), 1).name }),
    M: () => go({ v: turned(VALUES, VALUES.find((each) => each.name === state.v), -1).name }),
    ']': () => go({ step: left.keys[Math.min(left.keys.indexOf(left.step) + 1, left.keys.length - 1)], t: '' }),
    '[': () => go({ step: left.keys[Math.max(left.keys.indexOf(left.step) - 1, 0)], t: '' }),
    1: () => go({ tab: 'trees' }),
    2: () => go({ tab: 'curves' }),
    3: () => go({ tab: 'compare' }),
    '/': () => document.getElementById('search')?.focus(),
    d: () => setTheme(),
    '?': () => setHelp((is) => !is),
    Escape: () => setHelp(false),
  };
  if (!Object.hasOwn(actions, key)) return false;
  actions[key]();
  return true;
}

// The next branch in the order of the picture, from wherever one is.
function openFork(page, node, by, open) {
  const branches = page.order.filter((each) => each.parentNode);
  if (!branches.length) return;
  const from = page.order.indexOf(node);
  const ahead = by > 0 ? branches.find((each) => each.row > from) : branches.findLast((each) => each.row < from);
  open(ahead ?? (by > 0 ? branches[0] : branches[branches.length - 1]));
}
