// The mask that is painted: one class index a pixel, in a Uint8Array from the first stroke to the
// saved file. No colour is ever read back from a canvas, so there is none between two classes.

const CELL = 64; // side of the squares that undo keeps a copy of
const KEPT = 96 << 20; // bytes of copies that undo holds

export class Mask {
  // data: width * height class indices, row by row; 255 is what nobody is sure of.
  constructor(width, height, data) {
    if (data.length !== width * height) throw new Error("The mask arrived incomplete; load it again.");
    Object.assign(this, { width, height, data, undone: [], done: [], open: null });
  }

  // --- Strokes: what happens between begin and end is undone as one ---

  begin() {
    this.open = new Map();
  }

  // The box [left, top, right, bottom) that the stroke has changed, or null if it changed nothing.
  end() {
    const cells = this.open;
    this.open = null;
    const changed = [...cells].filter(([cell, old]) => !this.#equals(cell, old));
    if (!changed.length) return null;
    this.undone = [];
    this.done.push(new Map(changed));
    let bytes = 0;
    for (let i = this.done.length - 1; i >= 0; i--) {
      for (const old of this.done[i].values()) bytes += old.length;
      if (bytes > KEPT && i < this.done.length - 1) {
        this.done.splice(0, i + 1);
        break;
      }
    }
    return this.#boxOf(changed.map(([cell]) => cell));
  }

  // Takes back a stroke that is not ended.
  cancel() {
    if (!this.open) return;
    for (const [cell, old] of this.open) this.#put(cell, old);
    this.open = null;
  }

  undo() {
    return this.#swap(this.done, this.undone);
  }

  redo() {
    return this.#swap(this.undone, this.done);
  }

  #swap(from, to) {
    const cells = from.pop();
    if (!cells) return null;
    const back = new Map();
    for (const [cell, old] of cells) {
      back.set(cell, this.#copy(cell));
      this.#put(cell, old);
    }
    to.push(back);
    return this.#boxOf([...cells.keys()]);
  }

  // --- Shapes; each takes a class and paints whole pixels ---

  // All pixels whose centre is within `radius` of the line between two points.
  line(x0, y0, x1, y1, radius, value) {
    const [left, top, right, bottom] = this.#clip(
      Math.min(x0, x1) - radius, Math.min(y0, y1) - radius,
      Math.max(x0, x1) + radius + 1, Math.max(y0, y1) + radius + 1);
    if (left >= right || top >= bottom) return null;
    this.#touch(left, top, right, bottom);
    const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
    const limit = Math.max(radius, 0.5) ** 2;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const px = x + 0.5 - x0, py = y + 0.5 - y0;
        const t = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
        const ex = px - t * dx, ey = py - t * dy;
        if (ex * ex + ey * ey <= limit) this.data[y * this.width + x] = value;
      }
    }
    return [left, top, right, bottom];
  }

  // All pixels whose centre is inside a polygon, by the even-odd rule.
  polygon(points, value) {
    const xs = points.map(p => p[0]), ys = points.map(p => p[1]);
    const [left, top, right, bottom] = this.#clip(
      Math.min(...xs), Math.min(...ys), Math.max(...xs) + 1, Math.max(...ys) + 1);
    if (left >= right || top >= bottom) return null;
    this.#touch(left, top, right, bottom);
    for (let y = top; y < bottom; y++) {
      const middle = y + 0.5, cuts = [];
      points.forEach(([x0, y0], i) => {
        const [x1, y1] = points[(i + 1) % points.length];
        if ((y0 <= middle) !== (y1 <= middle)) cuts.push(x0 + (middle - y0) * (x1 - x0) / (y1 - y0));
      });
      cuts.sort((a, b) => a - b);
      for (let i = 0; i + 1 < cuts.length; i += 2) {
        const from = Math.max(left, Math.ceil(cuts[i] - 0.5));
        const to = Math.min(right, Math.ceil(cuts[i + 1] - 0.5));
        if (from < to) this.data.fill(value, y * this.width + from, y * this.width + to);
      }
    }
    return [left, top, right, bottom];
  }

  // The pixels of a box that are 1 in `found`.
  stamp([left, top, width, height], found, value) {
    this.#touch(left, top, left + width, top + height);
    for (let y = 0; y < height; y++) {
      const row = (top + y) * this.width + left;
      for (let x = 0; x < width; x++) if (found[y * width + x]) this.data[row + x] = value;
    }
    return [left, top, left + width, top + height];
  }

  at(x, y) {
    const inside = x >= 0 && y >= 0 && x < this.width && y < this.height;
    return inside ? this.data[Math.floor(y) * this.width + Math.floor(x)] : null;
  }

  // --- Copies of squares ---

  #clip(left, top, right, bottom) {
    return [Math.max(0, Math.floor(left)), Math.max(0, Math.floor(top)),
      Math.min(this.width, Math.ceil(right)), Math.min(this.height, Math.ceil(bottom))];
  }

  #touch(left, top, right, bottom) {
    const across = Math.ceil(this.width / CELL);
    for (let row = Math.floor(top / CELL); row * CELL < bottom; row++) {
      for (let column = Math.floor(left / CELL); column * CELL < right; column++) {
        const cell = row * across + column;
        if (!this.open.has(cell)) this.open.set(cell, this.#copy(cell));
      }
    }
  }

  #box(cell) {
    const across = Math.ceil(this.width / CELL);
    const left = (cell % across) * CELL, top = Math.floor(cell / across) * CELL;
    return [left, top, Math.min(left + CELL, this.width), Math.min(top + CELL, this.height)];
  }

  #boxOf(cells) {
    const boxes = cells.map(cell => this.#box(cell)), fold = (f, i) => boxes.map(b => b[i]).reduce((a, b) => f(a, b));
    return [fold(Math.min, 0), fold(Math.min, 1), fold(Math.max, 2), fold(Math.max, 3)];
  }

  #copy(cell) {
    const [left, top, right, bottom] = this.#box(cell), width = right - left;
    const copy = new Uint8Array(width * (bottom - top));
    for (let y = top; y < bottom; y++) {
      const start = y * this.width + left;
      copy.set(this.data.subarray(start, start + width), (y - top) * width);
    }
    return copy;
  }

  #put(cell, copy) {
    const [left, top, right, bottom] = this.#box(cell), width = right - left;
    for (let y = top; y < bottom; y++) {
      this.data.set(copy.subarray((y - top) * width, (y - top + 1) * width), y * this.width + left);
    }
  }

  #equals(cell, copy) {
    const now = this.#copy(cell);
    return now.every((value, i) => value === copy[i]);
  }
}
