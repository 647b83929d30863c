// What tests/test_browser.py asks a page: each function gives a list of what is wrong.
const seen = (node) => {
  const box = node.getBoundingClientRect();
  return box.width > 1 && box.height > 1 && node.checkVisibility({ visibilityProperty: true });
};

// Labels, names, order: what a screen reader needs.
function structure() {
  const wrong = [], all = (what) => [...document.querySelectorAll(what)];
  if (!document.documentElement.lang) wrong.push("no language");
  if (!document.title) wrong.push("no title");
  if (all("h1").length !== 1) wrong.push(`${all("h1").length} h1`);
  let level = 0;
  for (const head of all("h1, h2, h3, h4, h5, h6")) {
    if (+head.tagName[1] > level + 1) wrong.push(`${head.tagName} after h${level}`);
    if (!head.textContent.trim()) wrong.push(`${head.tagName} is empty`);
    level = +head.tagName[1];
  }
  for (const part of ["header", "main", "footer"])
    if (document.querySelectorAll(`body > ${part}`).length !== 1) wrong.push(`no ${part}`);
  for (const node of document.body.children)
    if (!["HEADER", "MAIN", "FOOTER", "SCRIPT", "NAV"].includes(node.tagName)) wrong.push(`${node.tagName} outside of landmarks`);
  for (const image of all("img")) if (!image.alt.trim()) wrong.push("picture without words");
  for (const table of all("table")) {
    if (!table.caption?.textContent.trim()) wrong.push("table without caption");
    for (const row of table.tHead?.rows ?? [])
      for (const cell of row.cells) if (cell.tagName !== "TH") wrong.push("head that is no th");
    for (const row of table.tBodies[0].rows) if (row.cells[0].tagName !== "TH") wrong.push("row without head");
    if (!table.tHead) wrong.push("table without head");
  }
  for (const head of all("th")) if (!["col", "row"].includes(head.scope)) wrong.push(`th without scope: ${head.textContent}`);
  for (const field of all("input, select, textarea"))
    if (![...field.labels].some((label) => label.innerText.trim())) wrong.push(`${field.tagName} without label`);
  for (const link of all("a, button, summary")) if (!link.textContent.trim()) wrong.push(`${link.tagName} without text`);
  for (const link of all("a")) if (!link.getAttribute("href")) wrong.push("link to nowhere");
  const names = all("[id]").map((node) => node.id);
  for (const name of names) if (names.indexOf(name) !== names.lastIndexOf(name)) wrong.push(`two of ${name}`);
  for (const node of all("*"))
    if (/auto|scroll/.test(getComputedStyle(node).overflow) && seen(node) && node.tabIndex < 0 && node.scrollWidth > node.clientWidth)
      wrong.push(`${node.tagName}.${node.className} cannot be scrolled by keyboard`);
  return wrong;
}

// Contrast of WCAG 2: 4.5 to 1, 3 to 1 for large text.
function contrast() {
  const parse = (text) => {
    const parts = text.match(/[\d.]+/g).map(Number);
    return { rgb: parts.slice(0, 3), alpha: parts[3] ?? 1 };
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const over = (top, under) => top.rgb.map((c, i) => c * top.alpha + under[i] * (1 - top.alpha));
  const behind = (node) => {
    if (!node) return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    const own = parse(getComputedStyle(node).backgroundColor);
    return own.alpha === 1 ? own.rgb : over(own, behind(node.parentElement));
  };
  const wrong = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || ["SCRIPT", "STYLE", "OPTION"].includes(node.tagName) || !seen(node)) continue;
    const style = getComputedStyle(node), under = behind(node), ink = over(parse(style.color), under);
    const [low, high] = [light(ink), light(under)].sort((a, b) => a - b), found = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    count += 1;
    if (found < (large ? 3 : 4.5)) wrong.push(`${found.toFixed(2)}: ${walk.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return count ? wrong : ["no text"];
}

// Wider than the screen, or cut.
function overflow() {
  const wide = document.documentElement.scrollWidth, screen = window.innerWidth;
  return wide > screen ? [`${wide} pixels on ${screen}`] : [];
}
function cut() {
  return [...document.querySelectorAll("body *")]
    .filter((node) => !/visible/.test(getComputedStyle(node).overflow) && seen(node))
    .filter((node) => node.scrollWidth > node.clientWidth + 1 || node.scrollHeight > node.clientHeight + 1)
    .map((node) => `${node.tagName}.${node.className}: ${node.textContent.slice(0, 40)}`);
}
function unfold() {
  for (const one of document.querySelectorAll("details")) one.open = true;
}
