// The trees of a prompt: who left whom, where tokens lie, and in which order trajectories stand below each other.

let numPages = 0;

// Adds to the page of a tree what is derived of it, once.
function prepare(page) {
  if (page.byId) return page;
  page.number = numPages++;
  page.byId = new Map(page.trajectories.map((node) => [node.id, node]));
  for (const node of page.trajectories) {
    node.end = node.start + node.tokens.length;
    node.children = [];
    node.parentNode = node.parent === null ? null : page.byId.get(node.parent);
    if (node.parentNode) node.parentNode.children.push(node);
    node.givenAt = (position) => node.given.find(([from, to]) => from <= position && position < to);
  }
  // Branches that leave late stand nearest to their parent: so no line crosses another.
  const order = [];
  const visit = (node) => {
    order.push(node);
    for (const child of [...node.children].sort((a, b) => b.start - a.start || a.id - b.id)) visit(child);
  };
  for (const node of page.trajectories) if (!node.parentNode) visit(node);
  page.order = order;
  order.forEach((node, row) => {
    node.row = row;
    node.name = nameOf(page, node);
  });
  page.closedBy = page.trajectories.find((node) => node.closed)?.closed;
  return page;
}

// Roots are counted; branch 2.1 is the first one that left root 2.
function nameOf(page, node) {
  if (!node.parentNode) return String(page.trajectories.filter((each) => !each.parentNode).indexOf(node) + 1);
  return `${nameOf(page, node.parentNode)}.${node.parentNode.children.indexOf(node) + 1}`;
}

const title = (node) => `${node.parentNode ? 'branch' : 'root'} ${node.name}`;

// The trajectory that a token at some position of the whole sequence was sampled for.
function ownerAt(node, position) {
  let owner = node;
  while (owner.parentNode && position < owner.start) owner = owner.parentNode;
  return owner;
}

// The whole sequence from one position to another, as pieces of the trajectories that own them.
function pieces(node, from, to) {
  const found = [];
  for (let end = to, owner = node; owner; end = Math.min(end, owner.start), owner = owner.parentNode) {
    const start = Math.max(from, owner.parentNode ? owner.start : 0);
    if (start < end) found.unshift({ node: owner, from: start, to: end });
    if (owner.start <= from) break;
  }
  return found;
}

const textOf = (page, node, position) => page.texts[node.tokens[position - node.start]];

const valueOf = (node, name, position) => node.values[name]?.[position - node.start] ?? null;

function plainText(page, node) {
  return pieces(node, 0, node.end)
    .map((piece) => {
      let text = '';
      for (let position = piece.from; position < piece.to; position++) text += textOf(page, piece.node, position);
      return text;
    })
    .join('');
}

// ---- lengths on paper ------------------------------------------------------------------------------------------------
const FOLDED = 4; // what a stretch that was not sampled is long, in tokens

// Where each position of a trajectory lies, in tokens, when tool results are folded.
function foldedLengths(page) {
  for (const node of page.order) {
    const starts = new Float32Array(node.tokens.length + 1);
    const before = node.parentNode ? placeOf(node.parentNode, node.start) : 0;
    let place = before;
    let next = 0;
    for (let position = node.start; position < node.end; position++) {
      starts[position - node.start] = place;
      while (next < node.given.length && node.given[next][1] <= position) next++;
      const run = node.given[next];
      const isGiven = run && run[0] <= position;
      place += isGiven ? FOLDED / (run[1] - run[0]) : 1;
    }
    starts[node.tokens.length] = place;
    node.places = starts;
  }
  return Math.max(1, ...page.order.map((node) => node.places[node.tokens.length]));
}

const placeOf = (node, position) => {
  const owner = ownerAt(node, position);
  return owner.places[Math.min(position - owner.start, owner.places.length - 1)];
};

// Branches that leave a trajectory, by the token that was drawn anew.
function forks(node) {
  const found = new Map();
  for (const child of node.children) {
    if (!found.has(child.chosen)) found.set(child.chosen, []);
    found.get(child.chosen).push(child);
  }
  return [...found].sort((a, b) => a[0] - b[0]);
}
