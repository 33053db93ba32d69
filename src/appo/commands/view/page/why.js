// Why branches leave where they do: the best candidates of a trajectory, and what was left out.

const SHOWN = 10;

function reasonsAt(page, node, position) {
  const bits = node.excluded?.[position - node.start] ?? 0;
  return page.reasons.filter((_, i) => bits & (1 << i));
}

// Deviations from the mean, as the Branching Score takes its factors over the tokens of a trajectory.
function standardized(column) {
  const known = column.filter((each) => each !== null);
  const mean = known.reduce((a, b) => a + b, 0) / known.length;
  const spread = Math.sqrt(known.reduce((a, b) => a + (b - mean) ** 2, 0) / known.length);
  return (each) => (each === null || !spread ? null : (each - mean) / spread);
}

function candidates(page, node) {
  const scores = node.values.score;
  if (!scores) return null;
  const taken = new Map(forks(node));
  const rows = scores
    .map((score, i) => ({ score, position: node.start + i }))
    .filter((row) => row.score !== null)
    .sort((a, b) => b.score - a.score)
    .map((row, i) => ({ ...row, rank: i + 1, branches: taken.get(row.position) ?? [] }));
  for (const row of rows) row.reasons = reasonsAt(page, node, row.position);
  const counts = page.reasons.map((name, i) => [name, (node.excluded ?? []).filter((bits) => bits & (1 << i)).length]);
  return { rows, counts: counts.filter(([, count]) => count > 0), total: rows.length };
}

function Why({ page, node, onSelect }) {
  const root = node.values.score ? node : node.parentNode;
  const found = useMemo(() => root && candidates(page, root), [page, root]);
  const [isAll, setAll] = useState(false);
  if (!found) return html`<p class="quiet">This step has no scores: nothing was branched here.</p>`;
  const possible = isAll ? found.rows : found.rows.filter((row) => !row.reasons.length || row.branches.length);
  // The best ones, and each that was taken.
  const shown = possible.filter((row, i) => i < SHOWN || row.branches.length);
  return html`<div class="why">
    <h3>Why here: ${title(root)}</h3>
    ${root.closed && html`<p class="notice">No branch could leave it: ${root.closed}.</p>`}
    <table class="grid">
      <thead>
        <tr>
          <th title="among all tokens of the trajectory">#</th>
          <th>token</th>
          <th class="num">score</th>
          <th class="num" title="entropy, and its deviation from the trajectory's mean">entropy</th>
          <th class="num" title="likelihood gain, and its deviation from the trajectory's mean">gain</th>
          <th></th>
        </tr>
      </thead>
      <tbody>
        ${shown.map((row) => html`<${Candidate} key=${row.position} page=${page} node=${root} row=${row} onSelect=${onSelect} />`)}
      </tbody>
    </table>
    ${page.unknown && html`<p class="quiet">${page.unknown}</p>`}
    <p class="quiet">
      ${found.total} scored tokens.
      ${found.counts.length > 0 && ` Left out: ${found.counts.map(([name, count]) => `${count} ${name}`).join(', ')}.`}
      ${' '}
      <button class="plain" onClick=${() => setAll(!isAll)}>${isAll ? 'hide what is left out' : 'show what is left out'}</button>
    </p>
    <p class="quiet">
      In small print: deviations from the trajectory's mean. The Branching Score is their product, or that of the entropy alone
      where the policy has not changed since it sampled.
    </p>
  </div>`;
}

function Candidate({ page, node, row, onSelect }) {
  const factor = (name) => {
    const column = node.values[name];
    if (!column) return '–';
    const each = column[row.position - node.start];
    const deviation = standardized(column)(each);
    return html`${number(each)}<small>${deviation === null ? '' : (deviation > 0 ? '+' : '') + number(deviation, 2)}</small>`;
  };
  const branches = row.branches.map(
    (child) =>
      html`<button key=${child.id} class="forkmark" title=${`open ${title(child)}, reward ${reward(child.reward)}`} onClick=${() => onSelect(child)}>
        ↳ ${child.name}
      </button>`,
  );
  return html`<tr class=${row.reasons.length ? 'out' : ''}>
    <td class="quiet">${row.rank}</td>
    <td class="mono">${JSON.stringify(textOf(page, node, row.position)).slice(1, -1)}<small>at ${row.position}</small></td>
    <td class="num">${number(row.score)}</td>
    <td class="num">${factor('entropy')}</td>
    <td class="num">${factor('gain')}</td>
    <td>${branches.length ? branches : html`<span class="quiet">${row.reasons.join(', ')}</span>`}</td>
  </tr>`;
}
