"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const map = document.getElementById("map"), stage = document.getElementById("stage");
  const tip = document.getElementById("tip"), tipPicture = document.getElementById("tip-picture");
  const tipWords = document.getElementById("tip-words"), said = document.getElementById("said");
  const openLink = document.getElementById("open"), allGroups = document.getElementById("all-groups");
  const sheets = document.querySelectorAll("img.sheet");
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const decode = text => new Uint16Array(bytes(text).buffer);
  const places = { tsne: decode(data.tsne), pca: decode(data.pca) };
  const tiles = bytes(data.tiles);
  const n = data.names.length;
  const okabe = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800", "#8c6bb1"];
  const colourOf = group => group < 0 ? "#8a949c" : group < okabe.length ? okabe[group]
    : `hsl(${Math.round(group * 137.508) % 360} ${55 + 25 * (group % 2)}% ${45 + 12 * (group % 3)}%)`;

  let layout = "tsne", colour = "cluster", only = null, current = -1;
  let scale = 1, left = 0, top = 0;
  // A page that is handed on has no links to the files of the pictures.
  const linked = data.base !== null;
  const address = i => data.base + (data.odd[i] ?? data.names[i].split("/").map(encodeURIComponent).join("/"));
  const groupOf = i => colour === "cluster" ? data.cluster[i] : data.label[i];
  const nameOf = group => colour === "cluster" ? `${group}` : group < 0 ? "no label" : data.labels[group];
  const shown = i => only === null || groupOf(i) === only;

  const view = () => {
    const { width, height } = stage.getBoundingClientRect(), margin = 14;
    return { width, height, margin, w: width - 2 * margin, h: height - 2 * margin };
  };
  const at = (i, v) => {
    const xy = places[layout];
    return [v.margin + ((xy[2 * i] / 65535) * scale - left) * v.w, v.margin + ((1 - xy[2 * i + 1] / 65535) * scale - top) * v.h];
  };

  const isInView = (i, v = view()) => {
    const [x, y] = at(i, v);
    return x >= 0 && y >= 0 && x <= v.width && y <= v.height;
  };

  // Draw the small copy of a picture into a square; its sides keep their ratio.
  function drawCopy(pen, i, x, y, side) {
    const number = data.thumb[i], per = data.columns * data.columns, inSheet = number % per;
    const w = tiles[2 * number], h = tiles[2 * number + 1], grow = side / Math.max(w, h);
    pen.drawImage(sheets[Math.floor(number / per)], (inSheet % data.columns) * data.size, Math.floor(inSheet / data.columns) * data.size, w, h,
      x + (side - w * grow) / 2, y + (side - h * grow) / 2, w * grow, h * grow);
  }

  // How large copies are drawn on the map: as large as there is room for, and not at all if there is little.
  const nearby = 1.5, smallest = 22, largest = 88;
  function copySide(v, inView) {
    const side = Math.min(largest, 0.7 * Math.sqrt(v.width * v.height / Math.max(1, inView)));
    return scale >= nearby && side >= smallest ? side : 0;
  }

  let asked = false;
  const redraw = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };

  function draw() {
    const v = view(), ratio = window.devicePixelRatio || 1;
    map.width = Math.round(v.width * ratio);
    map.height = Math.round(v.height * ratio);
    const pen = map.getContext("2d");
    pen.scale(ratio, ratio);
    const radius = Math.max(1.5, Math.min(6, 130 / Math.sqrt(n))) * Math.min(2.5, Math.sqrt(scale));
    const inView = [];
    for (let i = 0; i < n; i++) {
      if (!shown(i)) continue;
      const [x, y] = at(i, v);
      if (x < -9 || y < -9 || x > v.width + 9 || y > v.height + 9) continue;
      inView.push([i, x, y]);
    }
    const side = copySide(v, inView.length), groups = new Map();
    for (const [i, x, y] of inView) {
      if (side && data.thumb[i] >= 0) continue;
      const group = groupOf(i);
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(x, y);
    }
    for (const [group, points] of groups) {
      pen.fillStyle = colourOf(group);
      pen.globalAlpha = 0.85;
      pen.beginPath();
      for (let j = 0; j < points.length; j += 2) {
        if (n > 20000) pen.rect(points[j] - radius, points[j + 1] - radius, 2 * radius, 2 * radius);
        else { pen.moveTo(points[j] + radius, points[j + 1]); pen.arc(points[j], points[j + 1], radius, 0, 2 * Math.PI); }
      }
      pen.fill();
    }
    pen.globalAlpha = 1;
    let copies = 0;
    for (const [i, x, y] of side ? inView : []) {
      if (data.thumb[i] < 0) continue;
      pen.fillStyle = colourOf(groupOf(i));
      pen.fillRect(x - side / 2 - 2, y - side / 2 - 2, side + 4, side + 4);
      drawCopy(pen, i, x - side / 2, y - side / 2, side);
      copies++;
    }
    if (current >= 0 && shown(current)) {
      const [x, y] = at(current, v);
      pen.strokeStyle = getComputedStyle(document.body).color;
      pen.lineWidth = 2;
      pen.beginPath();
      if (side && data.thumb[current] >= 0) pen.rect(x - side / 2 - 4, y - side / 2 - 4, side + 8, side + 8);
      else pen.arc(x, y, radius + 4, 0, 2 * Math.PI);
      pen.stroke();
    }
    map.dataset.shown = inView.length;
    map.dataset.copies = copies;
  }

  const words = i => {
    const lines = [data.names[i], `group ${data.cluster[i]}`];
    if (data.labels) lines.push(data.label[i] < 0 ? "no label" : data.labels[data.label[i]]);
    if (data.silhouette[i] !== null) lines.push(`silhouette ${data.silhouette[i]}`);
    return lines;
  };

  function show(i, aloud) {
    current = i;
    redraw();
    if (i < 0) { tip.hidden = true; return; }
    const v = view(), [x, y] = at(i, v);
    tipPicture.hidden = data.thumb[i] < 0;
    if (!tipPicture.hidden) {
      const pen = tipPicture.getContext("2d");
      pen.clearRect(0, 0, tipPicture.width, tipPicture.height);
      drawCopy(pen, i, 0, 0, tipPicture.width);
    }
    tipWords.textContent = words(i).join("\n");
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(x + 12, v.width - box.width))}px`;
    tip.style.top = `${Math.max(0, y + 12 + box.height > v.height ? y - box.height - 12 : y + 12)}px`;
    if (aloud) { said.textContent = words(i).join(", "); if (linked) { openLink.href = address(i); openLink.hidden = false; } }
  }

  // A picture is near the pointer within this many pixels; for a click it must be nearer.
  const near = 48, hit = 24;
  function nearest(x, y, within) {
    const v = view();
    let best = -1, least = within * within;
    for (let i = 0; i < n; i++) {
      if (!shown(i)) continue;
      const [px, py] = at(i, v), far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) { least = far; best = i; }
    }
    return best;
  }

  // Buttons and keys zoom towards the chosen picture, or else towards the pictures in view.
  function zoomIn(factor) {
    const v = view(), seen = current >= 0 && isInView(current) ? [current] : data.names.map((_, i) => i).filter(i => shown(i) && isInView(i, v));
    const mean = axis => seen.length ? seen.reduce((sum, i) => sum + at(i, v)[axis], 0) / seen.length : axis ? v.height / 2 : v.width / 2;
    zoom(factor, mean(0) / v.width, mean(1) / v.height);
  }
  function zoom(factor, x, y) {
    const next = Math.max(1, Math.min(60, scale * factor));
    left = (left + x) * next / scale - x;
    top = (top + y) * next / scale - y;
    scale = next;
    move(0, 0);
  }
  function move(x, y) {
    left = Math.max(-0.3, Math.min(scale - 0.7, left + x));
    top = Math.max(-0.3, Math.min(scale - 0.7, top + y));
    if (scale === 1) left = top = 0;
    if (current >= 0) show(current); else redraw();
  }

  const buttons = document.getElementById("groups");
  function listGroups() {
    const counts = new Map();
    for (let i = 0; i < n; i++) counts.set(groupOf(i), (counts.get(groupOf(i)) || 0) + 1);
    buttons.replaceChildren(...[...counts.keys()].sort((a, b) => a - b).map(group => {
      const button = document.createElement("button"), dot = document.createElement("canvas");
      dot.width = dot.height = 8;
      const pen = dot.getContext("2d");
      pen.fillStyle = colourOf(group);
      pen.fillRect(0, 0, 8, 8);
      const name = document.createElement("bdi");
      name.textContent = nameOf(group);
      button.type = "button";
      button.dataset.group = group;
      button.append(dot, name, ` (${counts.get(group)})`);
      button.addEventListener("click", () => filter(only === group ? null : group));
      return button;
    }));
    filter(null);
  }
  function filter(group) {
    only = group;
    for (const button of buttons.children) button.setAttribute("aria-pressed", String(Number(button.dataset.group) === only && only !== null));
    said.textContent = only === null ? `${n} picture${n === 1 ? "" : "s"}` : `only ${colour === "cluster" ? "group" : colour} ${nameOf(only)}`;
    // A group that lies outside the part of the map in view is shown with the whole map.
    const v = view();
    if (only !== null && !data.names.some((_, i) => shown(i) && isInView(i, v))) { scale = 1; move(0, 0); }
    if (current >= 0 && !shown(current)) show(-1);
    redraw();
  }

  const place = event => { const box = map.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const pointers = new Map();
  let moved = 0;
  map.addEventListener("pointerdown", event => { pointers.set(event.pointerId, place(event)); moved = 0; map.setPointerCapture(event.pointerId); });
  map.addEventListener("pointermove", event => {
    const now = place(event), before = pointers.get(event.pointerId), v = view();
    if (!before) { show(nearest(...now, near)); return; }
    const others = [...pointers].filter(([id]) => id !== event.pointerId);
    if (others.length) {
      const other = others[0][1], apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
      zoom(apart(now, other) / Math.max(1, apart(before, other)), (now[0] + other[0]) / 2 / v.width, (now[1] + other[1]) / 2 / v.height);
    } else move((before[0] - now[0]) / v.w, (before[1] - now[1]) / v.h);
    moved += Math.abs(before[0] - now[0]) + Math.abs(before[1] - now[1]);
    pointers.set(event.pointerId, now);
  });
  const lift = event => {
    const pressed = pointers.delete(event.pointerId);
    if (!pressed || moved > 6 || event.type === "pointercancel") return;
    const i = nearest(...place(event), Math.max(hit, copySide(view(), Number(map.dataset.shown)) / 2));
    if (i < 0) { filter(null); return; }
    filter(only === groupOf(i) ? null : groupOf(i));
    show(i, true);
  };
  map.addEventListener("pointerup", lift);
  map.addEventListener("pointercancel", lift);
  map.addEventListener("pointerleave", () => { if (document.activeElement !== map) show(-1); });
  map.addEventListener("wheel", event => {
    // Otherwise the wheel would stop scrolling the page wherever the pointer meets the map.
    if (document.activeElement !== map && !event.ctrlKey) return;
    event.preventDefault();
    const [x, y] = place(event), v = view();
    zoom(Math.exp(-event.deltaY / 300), x / v.width, y / v.height);
  }, { passive: false });

  const step = by => {
    // If no picture is chosen, a step forwards goes to the first picture and a step backwards to the last.
    for (let tried = 0, i = current < 0 && by < 0 ? 0 : current; tried < n; tried++) {
      i = (i + by + n) % n;
      if (!shown(i)) continue;
      if (!isInView(i)) {
        const v = view(), [x, y] = at(i, v);
        move((x - v.width / 2) / v.w, (y - v.height / 2) / v.h);
      }
      show(i, true);
      return;
    }
  };
  function all() {
    scale = 1;
    filter(null);
    move(0, 0);
  }
  const keys = {
    ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, -0.1), ArrowDown: () => move(0, 0.1),
    "+": () => zoomIn(1.4), "=": () => zoomIn(1.4), "-": () => zoomIn(1 / 1.4), 0: all,
    n: () => step(1), p: () => step(-1),
    Enter: () => { if (current >= 0) filter(only === groupOf(current) ? null : groupOf(current)); },
    o: () => { if (current >= 0) { show(current, true); openLink.click(); } },
    Escape: () => { filter(null); show(-1); },
  };
  map.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  document.getElementById("zoom-in").addEventListener("click", () => zoomIn(1.4));
  document.getElementById("zoom-out").addEventListener("click", () => zoomIn(1 / 1.4));
  document.getElementById("zoom-all").addEventListener("click", all);
  allGroups.addEventListener("click", () => filter(null));
  for (const input of document.querySelectorAll("input[name=layout]")) input.addEventListener("change", () => { layout = input.value; show(-1); });
  for (const input of document.querySelectorAll("input[name=colour]")) input.addEventListener("change", () => { colour = input.value; listGroups(); });

  // The list of all pictures of a group is filled when it is opened, some at a time.
  const atATime = 200;
  function fill(list) {
    const rows = data.members[Number(list.dataset.group)], there = list.querySelector(".tiles"), ratio = Math.min(2, window.devicePixelRatio || 1);
    const from = there.childElementCount, more = list.querySelector(".more");
    for (const i of rows.slice(from, from + atATime)) {
      const link = document.createElement(linked ? "a" : "span"), copy = document.createElement("canvas");
      copy.width = copy.height = Math.round(72 * ratio);
      drawCopy(copy.getContext("2d"), i, 0, 0, copy.width);
      copy.setAttribute("role", "img");
      copy.setAttribute("aria-label", words(i).join(", "));
      link.title = data.names[i];
      if (linked) Object.assign(link, { href: address(i), target: "_blank", rel: "noopener" });
      link.append(copy);
      there.append(link);
    }
    const left = rows.length - there.childElementCount;
    more.hidden = left <= 0;
    more.textContent = `Show ${Math.min(left, atATime)} more of ${left}`;
  }
  for (const list of document.querySelectorAll("details.all")) {
    list.addEventListener("toggle", () => { if (list.open && !list.querySelector(".tiles").childElementCount) fill(list); });
    list.querySelector(".more").addEventListener("click", () => fill(list));
  }

  window.addEventListener("resize", redraw);
  window.addEventListener("load", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  listGroups();
  draw();
  performance.mark("interactive");
})();
