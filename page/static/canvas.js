// What one sees of a photograph and its mask: canvases of the window's size, whatever the photograph's.
//
// The photograph comes in tiles at the scale it is shown at. The mask is looked up for each pixel of
// the window, so that 50 megapixels cost no more than one. Places are in pixels of the photograph.

import { blobOf } from "./server.js";

const TILE = 512, HELD = 120;

export class View {
  // classes: [{name, color}]; address: of the photograph.
  constructor(photo, layer, mask, address, classes) {
    Object.assign(this, { photo, layer, mask, address, tiles: new Map(), opacity: 0.55, closed: false });
    this.colors = classes.map(entry => entry.color);
    this.fit();
  }

  close() {
    this.closed = true;
    for (const tile of this.tiles.values()) tile?.close?.();
  }

  // --- Scale and place ---

  // Canvases take the size of their box; true if that was new.
  resize() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const box = this.photo.parentElement.getBoundingClientRect();
    const width = Math.max(1, Math.round(box.width * ratio)), height = Math.max(1, Math.round(box.height * ratio));
    this.ratio = ratio;
    if (this.photo.width === width && this.photo.height === height) return false;
    for (const canvas of [this.photo, this.layer]) Object.assign(canvas, { width, height });
    return true;
  }

  fit() {
    this.resize();
    const { width, height } = this.photo, margin = 0.97;
    this.scale = Math.min(width / this.mask.width, height / this.mask.height) * margin;
    this.left = (width - this.mask.width * this.scale) / 2;
    this.top = (height - this.mask.height * this.scale) / 2;
  }

  // Scales about a place of the window (CSS pixels).
  zoom(factor, x = this.photo.width / this.ratio / 2, y = this.photo.height / this.ratio / 2) {
    const smallest = 0.25 * Math.min(this.photo.width / this.mask.width, this.photo.height / this.mask.height);
    const scale = Math.min(40 * this.ratio, Math.max(smallest, this.scale * factor));
    const [px, py] = this.toPicture(x, y);
    this.scale = scale;
    this.left = x * this.ratio - px * scale;
    this.top = y * this.ratio - py * scale;
  }

  pan(dx, dy) {
    this.left += dx * this.ratio;
    this.top += dy * this.ratio;
  }

  toPicture(x, y) {
    return [(x * this.ratio - this.left) / this.scale, (y * this.ratio - this.top) / this.scale];
  }

  toWindow(x, y) {
    return [(x * this.scale + this.left) / this.ratio, (y * this.scale + this.top) / this.ratio];
  }

  // Moves so that a place is seen.
  show(x, y) {
    const [wx, wy] = this.toWindow(x, y), edge = 24;
    const width = this.photo.width / this.ratio, height = this.photo.height / this.ratio;
    this.pan(Math.max(0, edge - wx) + Math.min(0, width - edge - wx), Math.max(0, edge - wy) + Math.min(0, height - edge - wy));
  }

  // --- Drawing ---

  draw() {
    this.resize();
    this.drawPhoto();
    this.drawMask();
  }

  drawPhoto() {
    const context = this.photo.getContext("2d");
    context.clearRect(0, 0, this.photo.width, this.photo.height);
    context.imageSmoothingEnabled = this.scale < 3;
    context.imageSmoothingQuality = "high";
    const coarsest = Math.max(0, Math.ceil(Math.log2(Math.max(this.mask.width, this.mask.height) / TILE)));
    const wanted = Math.min(coarsest, Math.max(0, Math.floor(Math.log2(1 / this.scale))));
    // The coarsest first, so that something is seen before the finer ones arrive.
    for (const level of new Set([coarsest, wanted])) this.drawLevel(context, level);
  }

  drawLevel(context, level) {
    const side = TILE * 2 ** level;
    const [x0, y0] = this.toPicture(0, 0);
    const [x1, y1] = this.toPicture(this.photo.width / this.ratio, this.photo.height / this.ratio);
    const last = [Math.ceil(Math.min(x1, this.mask.width) / side), Math.ceil(Math.min(y1, this.mask.height) / side)];
    for (let row = Math.max(0, Math.floor(y0 / side)); row < last[1]; row++) {
      for (let column = Math.max(0, Math.floor(x0 / side)); column < last[0]; column++) {
        const tile = this.tile(level, column, row);
        if (!tile) continue;
        const width = Math.min(side, this.mask.width - column * side);
        const height = Math.min(side, this.mask.height - row * side);
        context.drawImage(tile, column * side * this.scale + this.left, row * side * this.scale + this.top,
          width * this.scale, height * this.scale);
      }
    }
  }

  tile(level, column, row) {
    const key = `${level}/${column}/${row}`;
    if (!this.tiles.has(key)) {
      this.tiles.set(key, null);
      if (this.tiles.size > HELD) this.forget();
      blobOf(`${this.address}/tile/${key}`).then(createImageBitmap).then(bitmap => {
        if (this.closed) return bitmap.close();
        this.tiles.set(key, bitmap);
        this.drawPhoto();
      }).catch(() => this.tiles.delete(key));
    }
    return this.tiles.get(key);
  }

  forget() {
    const [key, tile] = this.tiles.entries().next().value;
    tile?.close();
    this.tiles.delete(key);
  }

  // Each window pixel of a box of the photograph gets the colour of the class that lies there;
  // outlines are opaque.
  drawMask(box = [0, 0, this.mask.width, this.mask.height]) {
    const { scale, left, top, mask } = this, { width: W, height: H } = this.layer;
    const x0 = Math.max(0, Math.floor(box[0] * scale + left) - 2), x1 = Math.min(W, Math.ceil(box[2] * scale + left) + 2);
    const y0 = Math.max(0, Math.floor(box[1] * scale + top) - 2), y1 = Math.min(H, Math.ceil(box[3] * scale + top) + 2);
    if (x0 >= x1 || y0 >= y1) return;
    const context = this.layer.getContext("2d"), width = x1 - x0;
    if (box[2] - box[0] === mask.width) context.clearRect(0, 0, W, H);
    const image = new ImageData(width, y1 - y0), pixels = new Uint32Array(image.data.buffer);
    const [inner, outline] = this.palettes();
    const columns = new Int32Array(width);
    for (let x = 0; x < width; x++) {
      const place = Math.floor((x + x0 + 0.5 - left) / scale);
      columns[x] = place >= 0 && place < mask.width ? place : -1;
    }
    let above = null;
    for (let y = 0; y < y1 - y0; y++) {
      const place = Math.floor((y + y0 + 0.5 - top) / scale);
      if (place < 0 || place >= mask.height) continue;
      const row = place * mask.width;
      for (let x = 0; x < width; x++) {
        if (columns[x] < 0) continue;
        const value = mask.data[row + columns[x]];
        if (!inner[value]) continue;
        const beside = x && columns[x - 1] >= 0 ? mask.data[row + columns[x - 1]] : value;
        const over = above === null ? value : mask.data[above + columns[x]];
        pixels[y * width + x] = beside !== value || over !== value ? outline[value] : inner[value];
      }
      above = row;
    }
    context.putImageData(image, x0, y0);
  }

  // The colour of each index as a little-endian pixel; black classes leave the photograph as it is.
  palettes() {
    const tables = [new Uint32Array(256), new Uint32Array(256)];
    if (this.opacity === 0) return tables;
    const colors = { 255: [150, 150, 150], ...this.colors };
    for (const [index, [red, green, blue]] of Object.entries(colors)) {
      if (!red && !green && !blue) continue;
      const color = (blue << 16) | (green << 8) | red;
      tables[0][index] = (Math.max(1, Math.round(this.opacity * 255)) << 24 | color) >>> 0;
      tables[1][index] = (Math.round(Math.min(1, this.opacity * 1.6) * 255) << 24 | color) >>> 0;
    }
    return tables;
  }
}
