// The page: what the link says, the keys, and the parts on their places.

function useLink() {
  const [state, setState] = useState(readLink);
  useEffect(() => {
    const read = () => setState(readLink());
    addEventListener('hashchange', read);
    return () => removeEventListener('hashchange', read);
  }, []);
  const go = (change) => {
    const link = writeLink({ ...readLink(), ...change });
    if (link !== location.hash) history.replaceState(null, '', link);
    setState(readLink());
  };
  return [state, go];
}

// A server is asked whether the run has grown; what is there is kept until the new overview has come.
function useOverviews() {
  const [found, setFound] = useState({ overviews: null, version: 0, error: null });
  useEffect(() => {
    let isCurrent = true;
    let known = '';
    const read = async (version) => {
      const overviews = await Promise.all(META.runs.map((_, run) => load(`${run}/overview`)));
      if (isCurrent) setFound({ overviews, version, error: null });
    };
    const follow = async () => {
      const now = await (await fetch('api/version')).text();
      if (now === known) return;
      if (known !== '') for (const run of META.runs.keys()) forget(`${run}/`);
      known = now;
      await read(now);
    };
    const fail = (error) => isCurrent && setFound((before) => ({ ...before, error: error.message }));
    if (!IS_SERVED) {
      read(0).catch(fail);
      return undefined;
    }
    const gone = () => fail(new Error('appo view has ended: what was read stays here'));
    follow().catch(fail);
    const timer = setInterval(() => follow().catch(gone), META.poll_ms);
    return () => {
      isCurrent = false;
      clearInterval(timer);
    };
  }, []);
  return found;
}

// One side of the page: a run and a step, and the questions of it.
function useSide(overviews, run, key, version) {
  const overview = overviews?.[run];
  const keys = overview?.steps.map((step) => step.key) ?? [];
  const step = keys.includes(key) ? key : keys[lastIteration(overview)];
  const base = `${run}/${step}`;
  const { value: index, error } = useBlock(overview ? `${base}/index` : null, version);
  return { run, step, base, index, error, version, name: overview?.name, keys };
}

// A page opens where trees are: at the last iteration, or at what there is.
function lastIteration(overview) {
  const steps = overview?.steps ?? [];
  const at = steps.map((step) => step.stage).lastIndexOf('iteration');
  return at < 0 ? steps.length - 1 : at;
}

function App() {
  const [state, go] = useLink();
  const { overviews, version, error } = useOverviews();
  const [isHelp, setHelp] = useState(false);
  const [theme, setTheme] = useTheme();
  const runs = META.runs.length;
  const run = Math.min(Number(state.run) || 0, runs - 1);
  const left = useSide(overviews, run, state.step, version);
  const run2 = state.run2 === '' ? runs - 1 : Math.min(Number(state.run2) || 0, runs - 1);
  const right = useSide(overviews, run2, state.step2 || (runs > 1 ? left.step : ''), version);
  const value = VALUES.find((each) => each.name === state.v) ?? VALUES[0];
  const search = useSearch(left.base, left.index, state.s);
  const { prompts: shown, matches } = useMemo(
    () => (left.index ? filtered(left.index, state, search.hits) : { prompts: [], matches: null }),
    [left.index, state, search.hits],
  );
  const prompt = left.index && (shown.find((each) => each.id === state.q) ?? telling(shown));
  const { value: raw, error: missing } = useBlock(prompt ? `${left.base}/tree/${left.index.prompts.indexOf(prompt)}` : null, version);
  const page = useMemo(() => raw && prepare(raw), [raw]);
  const node = page && (page.byId.get(Number(state.t || NaN)) ?? firstOf(page, matches));
  const open = (each) => go({ q: prompt.id, t: String(each.id) });
  useKeys({ state, go, left, shown, prompt, page, node, open, setHelp, setTheme });
  useLayoutEffect(() => {
    if (page || state.tab === 'curves') markPaint();
  }, [page, state.tab]);
  if (!overviews) return html`<p class="notice">${error ?? 'reading the run …'}</p>`;
  return html`<${Header} ...${{ state, go, overviews, left, value, error, setHelp, theme, setTheme }} />
    ${state.tab === 'curves' &&
    html`<${Curves} overviews=${overviews} theme=${theme} onStep=${(each) => go({ tab: 'trees', step: `iteration-${each}`, t: '' })} />`}
    ${state.tab === 'compare' && html`<${Compare} ...${{ state, go, overviews, value }} sides=${[left, right]} />`}
    ${state.tab === 'trees' &&
    html`<div class="columns">
      ${left.index && html`<${Sidebar} index=${left.index} ...${{ shown, matches, search, state, go }} current=${prompt?.id} />`}
      <main>
        ${page
          ? html`<${Question1} ...${{ page, left, state, go, version }} />
              <div class="card"><${Legend} value=${value} page=${page} /><${Tree} page=${page} selected=${node} value=${value} matches=${matches} onSelect=${open} /></div>
              <div class="below">
                <div class="card"><${Texts} key=${node.id} page=${page} node=${node} value=${value} onSelect=${open} /></div>
                <div class="card"><${Why} page=${page} node=${node} onSelect=${open} /></div>
              </div>
              <${Tooltip} page=${page} />`
          : html`<p class="notice">${left.error ?? missing ?? (left.index && !shown.length ? 'No trajectory passes the filters.' : 'reading …')}</p>`}
      </main>
    </div>`}
    ${isHelp && html`<${Help} onClose=${() => setHelp(false)} />`}`;
}

// The moment of the first picture, for those who measure.
function markPaint() {
  if (performance.getEntriesByName('appo:painted').length) return;
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark('appo:painted')));
}

// What is opened where nothing is asked for: a question whose branches fared differently, or has branches.
function telling(prompts) {
  const branches = (prompt) => prompt.trajectories.filter((each) => each.parent !== null);
  const differ = (prompt) => new Set(branches(prompt).map((each) => each.reward)).size > 1;
  return prompts.find(differ) ?? prompts.find((prompt) => branches(prompt).length > 0) ?? prompts[0];
}

const firstOf = (page, matches) => page.order.find((each) => !matches || matches.has(each.id)) ?? page.order[0];

render(html`<${App} />`, document.getElementById('app'));
