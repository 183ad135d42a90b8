/** Events with listeners. The event '*' hears everything, with the name as first argument. */
export class Emitter {
  #listeners = new Map();

  /** Call `listener` on each event. Returns a function that takes it off again. */
  on(event, listener) {
    if (typeof listener !== 'function') throw new TypeError('listener must be a function');
    if (!this.#listeners.has(event)) this.#listeners.set(event, []);
    this.#listeners.get(event).push({ listener, once: false });
    return () => this.off(event, listener);
  }

  /** Call `listener` on the next event only. */
  once(event, listener) {
    const stop = this.on(event, listener);
    this.#listeners.get(event).at(-1).once = true;
    return stop;
  }

  /** Take one listener off (the one added last, if it was added twice), or all of an event. */
  off(event, listener) {
    if (listener === undefined) {
      this.#listeners.delete(event);
      return;
    }
    const entries = this.#listeners.get(event) ?? [];
    const index = entries.findLastIndex((entry) => entry.listener === listener);
    if (index === -1) return;
    const remaining = entries.toSpliced(index, 1);
    if (remaining.length > 0) this.#listeners.set(event, remaining);
    else this.#listeners.delete(event);
  }

  /** Call the listeners in the order they were added. Returns whether there was one. */
  emit(event, ...args) {
    const entries = [...(this.#listeners.get(event) ?? [])];
    const wild = event === '*' ? [] : [...(this.#listeners.get('*') ?? [])];
    for (const entry of entries) {
      if (entry.once) this.off(event, entry.listener);
      entry.listener(...args);
    }
    for (const entry of wild) {
      if (entry.once) this.off('*', entry.listener);
      entry.listener(event, ...args);
    }
    return entries.length + wild.length > 0;
  }

  /** Like emit, but waits for each listener before the next; returns what they returned. */
  async emitAsync(event, ...args) {
    const results = [];
    for (const entry of [...(this.#listeners.get(event) ?? [])]) {
      if (entry.once) this.off(event, entry.listener);
      results.push(await entry.listener(...args));
    }
    return results;
  }

  /** Number of listeners of an event, or of all. */
  count(event) {
    if (event !== undefined) return this.#listeners.get(event)?.length ?? 0;
    let total = 0;
    for (const entries of this.#listeners.values()) total += entries.length;
    return total;
  }

  /** Names of events with listeners, in the order of their first listener. */
  events() {
    return [...this.#listeners.keys()];
  }
}
