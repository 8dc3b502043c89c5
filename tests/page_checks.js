// What a page must be for all to use it. Each gives a list of what is wrong.

/** Text that WCAG 2 AA would call too pale: what it is, and its contrast. */
function paleText() {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const over = ([r, g, b, a], below) =>
    [r, g, b].map((value, i) => value * a / 255 + below[i] * (1 - a / 255));
  const ground = (node) => {
    const color = rgba(getComputedStyle(node).backgroundColor);
    if (color[3] == 255 || !node.parentElement) return color.slice(0, 3);
    return over(color, ground(node.parentElement));
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, style = getComputedStyle(node);
    if (!walker.currentNode.data.trim() || !node.checkVisibility({opacityProperty: true})) continue;
    if (node.closest('.unseen, .skip, noscript, option') || style.clipPath != 'none') continue;
    const below = ground(node), above = over(rgba(style.color), below);
    const [high, low] = [light(above), light(below)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (ratio < least) poor.push(`${ratio.toFixed(2)} ${node.className}: ${walker.currentNode.data}`);
  }
  return poor;
}

/** What a page must have for those who hear it rather than see it. */
function unsaid() {
  const wrong = [], ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
  if (!document.documentElement.lang || !document.title) wrong.push('no language or title');
  if (new Set(ids).size != ids.length) wrong.push('an id twice');
  for (const each of document.querySelectorAll('[aria-labelledby], [aria-describedby], label[for]')) {
    const names = each.htmlFor ?? each.getAttribute('aria-labelledby')
      ?? each.getAttribute('aria-describedby');
    for (const id of names.split(' ')) if (!document.getElementById(id)) wrong.push(`no #${id}`);
  }
  for (const each of document.querySelectorAll('input, select, textarea'))
    if (!each.labels.length) wrong.push(`${each.id} has no label`);
  for (const each of document.querySelectorAll('button, a'))
    if (!each.textContent.trim()) wrong.push(`${each.id} says nothing`);
  for (const each of document.querySelectorAll('img:not([alt])')) wrong.push('an image without alt');
  for (const each of document.querySelectorAll('th:not([scope])')) wrong.push('a th without scope');
  for (const each of document.querySelectorAll('svg:not([aria-hidden])')) wrong.push('a drawing');
  for (const each of document.querySelectorAll('section:not([aria-labelledby])')) wrong.push(each.id);
  if (document.querySelectorAll('main').length != 1) wrong.push('not one main');
  const levels = [...document.querySelectorAll('h1, h2, h3')].map((each) => +each.tagName[1]);
  levels.forEach((level, i) => { if (level > (levels[i - 1] ?? 0) + 1) wrong.push('a level left out'); });
  if (document.documentElement.scrollWidth > innerWidth) wrong.push('wider than the window');
  return wrong;
}

/** The same of every colour that marks a value, whether there is such a value now or not. */
function paleMarks() {
  const marks = { heat: [0, 1, 2, 3, 4, 5, 6, 7, 8], tone: ['good', 'warn', 'bad', 'soft'],
    reason: ['cached', 'wait', 'cost'], some: ['yes', 'no'] };
  const pale = [];
  for (const [name, values] of Object.entries(marks)) {
    for (const each of document.querySelectorAll(`[data-${name}]`)) {
      const had = each.dataset[name];
      for (const value of values) {
        each.dataset[name] = value;
        pale.push(...paleText().map((found) => `${name} ${value}: ${found}`));
      }
      each.dataset[name] = had;
      break;
    }
  }
  return pale;
}
