// The same question twice: in two runs, or early and late in one.

function Compare({ state, go, overviews, sides, value }) {
  const [left, right] = sides;
  if (!left.index || !right.index) return html`<p class="notice">${left.error ?? right.error ?? 'reading …'}</p>`;
  const onRight = new Map(right.index.prompts.map((prompt, i) => [prompt.id, i]));
  const shared = left.index.prompts.filter((prompt) => onRight.has(prompt.id));
  const at = shared.findIndex((prompt) => prompt.id === state.q);
  const current = shared[Math.max(0, at)];
  const change = (name) => (event) => go({ [name]: event.target.value, t: '', t2: '' });
  const steps = (run) => overviews[run].steps.map((step) => html`<option key=${step.key} value=${step.key}>${stepName(step)}</option>`);
  const runs = overviews.map((overview, i) => html`<option key=${i} value=${String(i)}>${'AB'[i]}: ${overview.name}</option>`);
  return html`<div class="compare">
    <div class="pickers">
      ${[left, right].map(
        (side, i) => html`<span key=${i}>
          <select aria-label="run" value=${String(side.run)} onChange=${change(i ? 'run2' : 'run')}>${runs}</select>
          <select aria-label="step" value=${side.step} onChange=${change(i ? 'step2' : 'step')}>${steps(side.run)}</select>
        </span>`,
      )}
    </div>
    ${!current
      ? html`<p class="notice">These two steps share no question. ${hint(state, overviews)}</p>`
      : html`<label class="asked"
            >question ${shared.indexOf(current) + 1} of ${shared.length} that both have
            <select value=${current.id} onChange=${change('q')}>
              ${shared.map((prompt) => html`<option key=${prompt.id} value=${prompt.id}>${prompt.question ?? prompt.id}</option>`)}
            </select></label
          >
          <div class="pair">
            <${Side} side=${left} prompt=${current} selected=${state.t} value=${value} onSelect=${(node) => go({ t: String(node.id) })} />
            <${Side} side=${right} prompt=${right.index.prompts[onRight.get(current.id)]} selected=${state.t2} value=${value}
              onSelect=${(node) => go({ t2: String(node.id) })} />
          </div>`}
  </div>`;
}

const hint = (state, overviews) =>
  overviews.length > 1
    ? 'Choose steps of equal number, or validations: runs with one seed ask the same questions in the same order.'
    : 'Choose two steps that ask the same, such as two validations, or start appo view with --against and another run.';

function Side({ side, prompt, selected, value, onSelect }) {
  const key = `${side.base}/tree/${side.index.prompts.indexOf(prompt)}`;
  const { value: raw, error } = useBlock(key, side.version);
  const page = useMemo(() => raw && prepare(raw), [raw]);
  if (!page) return html`<section><p class="notice">${error ?? 'reading …'}</p></section>`;
  const node = page.byId.get(Number(selected)) ?? page.order[0];
  const rewards = page.trajectories.map((each) => each.reward ?? 0);
  const mean = rewards.reduce((a, b) => a + b, 0) / rewards.length;
  return html`<section>
    <h3>${side.name}, ${side.step.replace('-', ' ')}: ${rewards.length} trajectories, mean reward ${reward(mean)}</h3>
    <${Tree} page=${page} selected=${node} value=${value} onSelect=${onSelect} />
    <${Texts} key=${node.id} page=${page} node=${node} value=${value} onSelect=${onSelect} />
    <${Tooltip} page=${page} />
  </section>`;
}
