// Pictures of a slice: windowed image, outlines of masks, and the region on which two masks differ.

export const UNKNOWN = 255;
// Colours that colour-blind readers can tell apart (Okabe and Ito 2008). The list repeats for further classes.
export const COLOURS = ["#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73"];
export const DASHES = [[], [8, 5], [2, 4], [12, 4, 2, 4], [5, 2]];
const HALO = "rgba(0, 0, 0, 0.85)";
const LINE = 2;
const STRIPE = 10; // pixels from a stripe to the next

export const colourOf = (label) => COLOURS[(label - 1) % COLOURS.length];
export const dashOf = (label) => DASHES[(label - 1) % DASHES.length];

/** Image of a slice as a canvas of one pixel per voxel. `windows` has [black, white] in stored numbers per channel. */
export function picture(slice, shape, channel, rgb, windows) {
  const [rows, columns] = shape;
  const voxels = rows * columns;
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const pixels = new ImageData(columns, rows);
  for (let part = 0; part < 3; part++) {
    const from = rgb ? part : channel;
    const [low, high] = windows[from];
    const factor = 255 / Math.max(high - low, 1e-9);
    const values = slice.image.subarray(from * voxels, (from + 1) * voxels);
    // The array of an ImageData cuts numbers to 0 and 255.
    for (let i = 0; i < voxels; i++) pixels.data[4 * i + part] = (values[i] - low) * factor;
  }
  for (let i = 0; i < voxels; i++) pixels.data[4 * i + 3] = 255;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Canvas that is white where two masks differ. Voxels that are unknown in either mask are left out. */
export function difference(slice, shape) {
  const [rows, columns] = shape;
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const pixels = new ImageData(columns, rows);
  const [one, two] = slice.masks;
  for (let i = 0; i < one.length; i++) {
    if (one[i] !== two[i] && one[i] !== UNKNOWN && two[i] !== UNKNOWN) pixels.data.fill(255, 4 * i, 4 * i + 4);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Closed outline of a class in voxels, along the edges of voxels: a list of lists of [x, y]. */
export function outline(mask, shape, label) {
  const [rows, columns] = shape;
  const inside = (row, column) =>
    row >= 0 && column >= 0 && row < rows && column < columns && mask[row * columns + column] === label;
  const width = columns + 1;
  const next = new Map();
  const add = (x, y, toX, toY) => {
    const key = y * width + x;
    const found = next.get(key);
    if (found) found.push(toY * width + toX);
    else next.set(key, [toY * width + toX]);
  };
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      if (mask[row * columns + column] !== label) continue;
      if (!inside(row - 1, column)) add(column, row, column + 1, row);
      if (!inside(row, column + 1)) add(column + 1, row, column + 1, row + 1);
      if (!inside(row + 1, column)) add(column + 1, row + 1, column, row + 1);
      if (!inside(row, column - 1)) add(column, row + 1, column, row);
    }
  }
  const lines = [];
  for (const start of next.keys()) {
    while (next.get(start).length) {
      const line = [];
      let at = start;
      do {
        line.push([at % width, Math.floor(at / width)]);
        at = next.get(at).pop();
      } while (at !== start);
      lines.push(line);
    }
  }
  return lines;
}

/** Draw one canvas. `look` is what the reviewer has chosen; `sides` lists the masks to draw, 0 left and 1 right. */
export function draw(canvas, pair, slice, look, sides) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const at = placement(canvas, pair, look);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  const shape = pair.shape.slice(1);
  const box = [at.x(0), at.y(0), shape[1] * at.scale, shape[0] * at.scale * pair.aspect];
  context.imageSmoothingEnabled = false;
  context.drawImage(picture(slice, shape, look.channel, pair.rgb, look.windows), ...box);
  if (look.difference) hatch(context, difference(slice, shape), box, width, height);
  if (look.outlines) {
    for (const side of sides) strokes(context, pair, slice, side, sides.length > 1, at);
  }
  if (pair.edges) letters(context, pair.edges, width, height);
}

/** Scale in pixels of the page per voxel, and the way from voxels to the page. */
export function placement(canvas, pair, look) {
  const [rows, columns] = pair.shape.slice(1);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const scale = look.zoom * Math.min(width / columns, height / (rows * pair.aspect));
  return {
    scale,
    x: (column) => width / 2 + (column - look.x) * scale,
    y: (row) => height / 2 + (row - look.y) * scale * pair.aspect,
  };
}

function strokes(context, pair, slice, side, both, at) {
  const shape = pair.shape.slice(1);
  const oneClass = pair.classes.length === 2;
  for (let label = 1; label < pair.classes.length; label++) {
    const key = `${side}:${label}`;
    slice.lines.has(key) || slice.lines.set(key, outline(slice.masks[side], shape, label));
    const path = new Path2D();
    for (const line of slice.lines.get(key)) {
      line.forEach(([x, y], i) => (i ? path.lineTo(at.x(x), at.y(y)) : path.moveTo(at.x(x), at.y(y))));
      path.closePath();
    }
    context.lineJoin = "round";
    context.setLineDash([]);
    context.strokeStyle = HALO;
    context.lineWidth = LINE + 2;
    context.stroke(path);
    context.setLineDash(both ? DASHES[side] : dashOf(label));
    context.strokeStyle = both && oneClass ? COLOURS[side] : colourOf(label);
    context.lineWidth = LINE;
    context.stroke(path);
  }
  context.setLineDash([]);
}

/** Diagonal stripes over the region, white beside black, so that they show on any image and need no colour. */
function hatch(context, region, box, width, height) {
  const layer = document.createElement("canvas");
  layer.width = Math.max(1, Math.round(width));
  layer.height = Math.max(1, Math.round(height));
  const over = layer.getContext("2d");
  over.imageSmoothingEnabled = false;
  over.drawImage(region, ...box);
  over.globalCompositeOperation = "source-in";
  over.fillStyle = over.createPattern(stripes(), "repeat");
  over.fillRect(0, 0, width, height);
  context.drawImage(layer, 0, 0);
}

function stripes() {
  const tile = document.createElement("canvas");
  tile.width = tile.height = STRIPE;
  const pixels = new ImageData(STRIPE, STRIPE);
  for (let y = 0; y < STRIPE; y++) {
    for (let x = 0; x < STRIPE; x++) {
      const place = (x + y) % STRIPE;
      const value = place < 2 ? 255 : 0;
      pixels.data.set([value, value, value, place < 4 ? 255 : 0], 4 * (y * STRIPE + x));
    }
  }
  tile.getContext("2d").putImageData(pixels, 0, 0);
  return tile;
}

function letters(context, edges, width, height) {
  context.font = "600 15px system-ui, sans-serif";
  context.textBaseline = "middle";
  const places = [["left", 6, height / 2], ["right", width - 6, height / 2], ["center", width / 2, 12], ["center", width / 2, height - 12]];
  edges.forEach((letter, i) => {
    const [align, x, y] = places[i];
    context.textAlign = align;
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.strokeText(letter, x, y);
    context.fillStyle = "#fff";
    context.fillText(letter, x, y);
  });
}

/** Box [top, left, bottom, right] of the foreground of both masks of a slice; null if both are empty. */
export function boxOf(slice, shape) {
  const [rows, columns] = shape;
  let box = null;
  for (const mask of slice.masks) {
    for (let i = 0; i < mask.length; i++) {
      if (mask[i] === 0 || mask[i] === UNKNOWN) continue;
      const row = Math.floor(i / columns);
      const column = i % columns;
      box = box ?? [row, column, row + 1, column + 1];
      box = [Math.min(box[0], row), Math.min(box[1], column), Math.max(box[2], row + 1), Math.max(box[3], column + 1)];
    }
  }
  return box;
}
