"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const viewer = document.querySelector(".viewer");
  const loading = document.getElementById("loading");
  const byId = (id) => document.getElementById(id);

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  loading.hidden = false;
  let ct, labels;
  try {
    ct = new Uint8Array(await unpack(data.ct));
    labels = new Uint16Array(await unpack(data.labels));
  } catch (error) {
    // noscript's content is plain text while scripts run; it comes from this very file
    byId("still").innerHTML = document.querySelector("noscript").textContent;
    byId("still").hidden = false;
    loading.hidden = true;
    return;
  }
  loading.hidden = true;

  // cut, across, down: RAS axes; columns and rows run from high to low index (R left, A and S up)
  const PLANES = {
    axial: { cut: 2, across: 0, down: 1, edges: "RLAP" },
    coronal: { cut: 1, across: 0, down: 2, edges: "RLSI" },
    sagittal: { cut: 0, across: 1, down: 2, edges: "APSI" },
  };
  const [nx, ny] = data.shape;
  const stride = [1, nx, nx * ny];
  const size = data.shape.map((n, axis) => n * data.spacing[axis]);
  const nodeOf = new Map(data.nodes.map((node) => [node.label, node]));
  const at = data.shape.map((n) => n >> 1);
  let selected = null;
  let grey = new Uint8Array(256);

  const codeToHu = (code) => {
    let i = 1;
    while (code > data.codeHu[i][0]) i++;
    const [[c0, h0], [c1, h1]] = [data.codeHu[i - 1], data.codeHu[i]];
    return h0 + ((code - c0) * (h1 - h0)) / (c1 - c0);
  };

  function setWindow(level, width) {
    byId("level").value = level;
    byId("width").value = width;
    for (let code = 0; code < 256; code++)
      grey[code] = Math.max(0, Math.min(255, ((codeToHu(code) - level) / width + 0.5) * 255));
    for (const button of document.querySelectorAll("[data-window]"))
      button.setAttribute("aria-pressed", button.dataset.window === `${level},${width}`);
    drawAll();
  }

  function makePlane(name) {
    const figure = document.querySelector(`[data-plane=${name}]`);
    const plane = { name, ...PLANES[name], figure, canvas: figure.querySelector("canvas"),
      slider: figure.querySelector("input"), number: figure.querySelector("output") };
    plane.w = data.shape[plane.across];
    plane.h = data.shape[plane.down];
    plane.slices = document.createElement("canvas");
    plane.slices.width = plane.w;
    plane.slices.height = plane.h;
    plane.slider.max = data.shape[plane.cut] - 1;
    plane.canvas.style.aspectRatio = `${size[plane.across]} / ${size[plane.down]}`;
    plane.slider.addEventListener("input", () => moveTo(plane.cut, Number(plane.slider.value)));
    plane.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      moveTo(plane.cut, at[plane.cut] - Math.sign(event.deltaY));
    }, { passive: false });
    plane.canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 }[event.key];
      if (step) { event.preventDefault(); moveTo(plane.cut, at[plane.cut] + step); }
    });
    plane.canvas.addEventListener("click", (event) => {
      const place = voxelUnder(plane, event);
      at[plane.across] = place[plane.across];
      at[plane.down] = place[plane.down];
      choose(labels[offset(place)] || null);
      drawAll();
    });
    plane.canvas.addEventListener("mousemove", (event) => probe(voxelUnder(plane, event)));
    plane.canvas.addEventListener("mouseleave", () => { byId("probe").textContent = ""; });
    return plane;
  }

  const offset = (place) => place[0] + nx * (place[1] + ny * place[2]);
  const clamp = (value, axis) => Math.max(0, Math.min(data.shape[axis] - 1, value));

  function voxelUnder(plane, event) {
    const box = plane.canvas.getBoundingClientRect();
    const place = [...at];
    place[plane.across] = clamp(plane.w - 1 - Math.floor(((event.clientX - box.left) / box.width) * plane.w), plane.across);
    place[plane.down] = clamp(plane.h - 1 - Math.floor(((event.clientY - box.top) / box.height) * plane.h), plane.down);
    return place;
  }

  function probe(place) {
    const label = labels[offset(place)];
    const hu = Math.round(codeToHu(ct[offset(place)]));
    byId("probe").textContent = `≈ ${hu} HU${label ? `, node ${label}` : ""}`;
  }

  function moveTo(axis, index) {
    at[axis] = clamp(index, axis);
    drawAll();
  }

  function choose(label) {
    selected = nodeOf.has(label) ? label : null;
    for (const row of document.querySelectorAll("[data-row]"))
      row.classList.toggle("shown", Number(row.dataset.row) === selected);
  }

  function show(label) {
    nodeOf.get(label).at.forEach((index, axis) => { at[axis] = index; });
    choose(label);
    drawAll();
  }

  function step(by) {
    if (!data.nodes.length) return;
    const now = data.nodes.findIndex((node) => node.label === selected);
    const next = now < 0 ? (by > 0 ? 0 : data.nodes.length - 1) : (now + by + data.nodes.length) % data.nodes.length;
    show(data.nodes[next].label);
  }

  function slice(plane) {
    const image = new ImageData(plane.w, plane.h);
    const ids = new Uint16Array(plane.w * plane.h);
    const base = at[plane.cut] * stride[plane.cut];
    for (let row = 0, out = 0; row < plane.h; row++) {
      const line = base + (plane.h - 1 - row) * stride[plane.down];
      for (let column = 0; column < plane.w; column++, out++) {
        const voxel = line + (plane.w - 1 - column) * stride[plane.across];
        const value = grey[ct[voxel]];
        image.data[4 * out] = image.data[4 * out + 1] = image.data[4 * out + 2] = value;
        image.data[4 * out + 3] = 255;
        ids[out] = labels[voxel];
      }
    }
    plane.slices.getContext("2d").putImageData(image, 0, 0);
    return ids;
  }

  function outlines(plane, ids, context, sx, sy, ratio) {
    const paths = new Map();
    const tops = new Map();
    const id = (column, row) => (column < 0 || row < 0 || column >= plane.w || row >= plane.h ? 0 : ids[row * plane.w + column]);
    for (let row = 0; row < plane.h; row++)
      for (let column = 0; column < plane.w; column++) {
        const label = ids[row * plane.w + column];
        if (!label) continue;
        if (!paths.has(label)) { paths.set(label, new Path2D()); tops.set(label, [column, row]); }
        const path = paths.get(label);
        const [x0, x1, y0, y1] = [column * sx, (column + 1) * sx, row * sy, (row + 1) * sy];
        if (id(column, row - 1) !== label) { path.moveTo(x0, y0); path.lineTo(x1, y0); }
        if (id(column, row + 1) !== label) { path.moveTo(x0, y1); path.lineTo(x1, y1); }
        if (id(column - 1, row) !== label) { path.moveTo(x0, y0); path.lineTo(x0, y1); }
        if (id(column + 1, row) !== label) { path.moveTo(x1, y0); path.lineTo(x1, y1); }
      }
    context.lineCap = "round";
    for (const [label, path] of paths) {
      context.strokeStyle = data.colours[(nodeOf.get(label) || {}).recist] || "#fff";
      context.lineWidth = (label === selected ? 2.5 : 1.5) * ratio;
      context.stroke(path);
      const [column, row] = tops.get(label);
      write(context, String(label), (column + 0.5) * sx, row * sy - 9 * ratio, (label === selected ? 14 : 12) * ratio, context.strokeStyle);
    }
  }

  function write(context, text, x, y, pixels, colour) {
    context.font = `600 ${pixels}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.lineWidth = pixels / 4;
    context.strokeStyle = "#000";
    context.strokeText(text, x, y);
    context.fillStyle = colour;
    context.fillText(text, x, y);
    context.strokeStyle = colour;
  }

  function crosshair(plane, context, width, height, sx, sy, ratio) {
    const x = (plane.w - 0.5 - at[plane.across]) * sx;
    const y = (plane.h - 0.5 - at[plane.down]) * sy;
    const gap = 26 * ratio;
    context.strokeStyle = "rgb(255 255 255 / .45)";
    context.lineWidth = ratio;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  function scaleBar(plane, context, width, height, ratio) {
    const length = (50 / size[plane.across]) * width;
    const [x, y] = [12 * ratio, height - 14 * ratio];
    context.fillStyle = "#000";
    context.fillRect(x - ratio, y - 2 * ratio, length + 2 * ratio, 4 * ratio);
    context.fillStyle = "#fff";
    context.fillRect(x, y - ratio, length, 2 * ratio);
    write(context, "50 mm", x + length / 2, y - 10 * ratio, 11 * ratio, "#fff");
  }

  function draw(plane) {
    const ratio = window.devicePixelRatio || 1;
    const box = plane.canvas.getBoundingClientRect();
    const [width, height] = [Math.max(1, Math.round(box.width * ratio)), Math.max(1, Math.round(box.height * ratio))];
    if (plane.canvas.width !== width || plane.canvas.height !== height) {
      plane.canvas.width = width;
      plane.canvas.height = height;
    }
    const context = plane.canvas.getContext("2d");
    const ids = slice(plane);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(plane.slices, 0, 0, width, height);
    const [sx, sy] = [width / plane.w, height / plane.h];
    if (byId("cross").checked) crosshair(plane, context, width, height, sx, sy, ratio);
    if (byId("outlines").checked) outlines(plane, ids, context, sx, sy, ratio);
    scaleBar(plane, context, width, height, ratio);
    const spots = [[11, height / ratio / 2], [width / ratio - 11, height / ratio / 2], [width / ratio / 2, 12], [width / ratio / 2, height / ratio - 12]];
    spots.forEach(([x, y], i) => write(context, plane.edges[i], x * ratio, y * ratio, 14 * ratio, "#fff"));
    plane.slider.value = at[plane.cut];
    plane.number.textContent = `${at[plane.cut] + 1} / ${data.shape[plane.cut]}`;
    plane.canvas.dataset.slice = at[plane.cut];
  }

  const columns = Object.values(PLANES).map((plane) => `minmax(0, ${size[plane.across]}fr)`).join(" ");
  viewer.querySelector(".planes").style.gridTemplateColumns = columns;
  viewer.style.setProperty("--columns", columns);
  viewer.hidden = false;
  const planes = Object.keys(PLANES).map(makePlane);
  const drawAll = () => planes.forEach(draw);

  for (const button of document.querySelectorAll("[data-window]"))
    button.addEventListener("click", () => setWindow(...button.dataset.window.split(",").map(Number)));
  for (const id of ["level", "width"])
    byId(id).addEventListener("change", () => setWindow(Number(byId("level").value), Math.max(10, Number(byId("width").value))));
  for (const id of ["outlines", "cross"]) byId(id).addEventListener("change", drawAll);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  for (const row of document.querySelectorAll("[data-row]"))
    row.addEventListener("click", () => {
      show(Number(row.dataset.row));
      viewer.scrollIntoView({ block: "nearest" });
    });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.type === "number") return;
    const key = event.key.toLowerCase();
    if (key === "n") step(1);
    if (key === "p") step(-1);
    if (key === "o" || key === "x") byId(key === "o" ? "outlines" : "cross").click();
    const preset = document.querySelectorAll("[data-window]")[Number(key) - 1];
    if (preset) preset.click();
  });
  new ResizeObserver(drawAll).observe(viewer);
  setWindow(40, 400);
  if (data.nodes.length) show(data.nodes[0].label);
  document.documentElement.dataset.ready = "yes";
})();
