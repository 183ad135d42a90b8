/** Undo and redo of states. States are kept as they are: hand in copies. */
export class History {
  #past = [];
  #future = [];
  #present;
  #limit;

  constructor(initial, { limit = 50 } = {}) {
    if (limit < 1) throw new RangeError('limit must be at least 1');
    this.#present = initial;
    this.#limit = limit;
  }

  get current() {
    return this.#present;
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /** A new state; what could be redone is forgotten, and so is the oldest state above the limit. */
  push(state) {
    this.#past.push(this.#present);
    if (this.#past.length > this.#limit) this.#past.shift();
    this.#present = state;
    this.#future = [];
    return this;
  }

  /** Back one step; stays where it is at the beginning. Returns the current state. */
  undo() {
    if (this.canUndo) {
      this.#future.unshift(this.#present);
      this.#present = this.#past.pop();
    }
    return this.#present;
  }

  /** Forward one step; stays where it is at the end. Returns the current state. */
  redo() {
    if (this.canRedo) {
      this.#past.push(this.#present);
      this.#present = this.#future.shift();
    }
    return this.#present;
  }

  /** Undo or redo several steps at once: negative is back. */
  go(steps) {
    for (let step = 0; step < Math.abs(steps); step += 1) {
      if (steps < 0) this.undo();
      else this.redo();
    }
    return this.#present;
  }

  /** Forget everything but the current state. */
  reset(state = this.#present) {
    this.#past = [];
    this.#future = [];
    this.#present = state;
    return this;
  }
}
