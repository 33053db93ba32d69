// Curves over iterations, of one run or of two.

const LINES = ['#e67e14', '#2878e6', '#2a9d6f', '#b0489f', '#8a7a20', '#6d6d6d'];

function Curves({ overviews, onStep, theme }) {
  const titles = [];
  for (const overview of overviews) {
    for (const chart of overview.curves.charts) if (!titles.includes(chart.title)) titles.push(chart.title);
  }
  if (!titles.length) return html`<p class="notice">No metrics yet: a run writes them at the end of each iteration.</p>`;
  return html`<div class="charts">
    ${titles.map((each) => html`<${Chart} key=${each} title=${each} overviews=${overviews} onStep=${onStep} theme=${theme} />`)}
  </div>`;
}

// The lines of a chart over the iterations of all runs; the second run's are dashed.
function aligned(title, overviews) {
  const x = [...new Set(overviews.flatMap((overview) => overview.curves.x))].sort((a, b) => a - b);
  const lines = [];
  let unit = '';
  overviews.forEach((overview, run) => {
    const chart = overview.curves.charts.find((each) => each.title === title);
    chart?.lines.forEach((line, i) => {
      unit = chart.unit;
      const at = new Map(overview.curves.x.map((each, j) => [each, line.y[j]]));
      lines.push({
        label: overviews.length > 1 ? `${line.label} (${'AB'[run]})` : line.label,
        y: x.map((each) => at.get(each) ?? null),
        color: LINES[i % LINES.length],
        dash: run ? [5, 4] : undefined,
      });
    });
  });
  return { x, lines, unit };
}

function Chart({ title, overviews, onStep, theme }) {
  const [ref, width] = useWidth();
  const { x, lines, unit } = useMemo(() => aligned(title, overviews), [title, overviews]);
  const [at, setAt] = useState(null);
  useEffect(() => {
    if (!width) return undefined;
    const ink = getComputedStyle(ref.current).color;
    const axis = { stroke: ink, grid: { stroke: 'rgba(128,128,128,0.18)', width: 1 }, ticks: { show: false }, font: '11px system-ui' };
    const plot = new window.uPlot(
      {
        width,
        height: 170,
        legend: { show: false },
        scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) } },
        axes: [
          // Iterations are whole numbers.
          { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000], size: 26 },
          { ...axis, size: 52 },
        ],
        cursor: { y: false, points: { size: 6 } },
        series: [
          {},
          ...lines.map((line) => ({
            stroke: line.color,
            width: 1.8,
            dash: line.dash,
            spanGaps: true,
            points: { show: x.length < 40, size: 4, fill: line.color },
          })),
        ],
        hooks: { setCursor: [(each) => setAt(each.cursor.idx ?? null)] },
      },
      [x, ...lines.map((line) => line.y)],
      ref.current,
    );
    plot.over.addEventListener('click', () => plot.cursor.idx !== null && onStep(x[plot.cursor.idx]));
    return () => plot.destroy();
  }, [width, x, lines, theme]);
  const shown = at ?? x.length - 1;
  return html`<figure class="chart">
    <figcaption><b>${title}</b> <span class="quiet">${unit}</span></figcaption>
    <div ref=${ref}></div>
    <div class="legend">
      <span class="quiet">iteration ${x[shown]}</span>
      ${lines.map(
        (line) => html`<span key=${line.label}>
          <i style=${{ borderTop: `2px ${line.dash ? 'dashed' : 'solid'} ${line.color}` }} />${line.label} <b>${number(line.y[shown])}</b>
        </span>`,
      )}
    </div>
  </figure>`;
}
