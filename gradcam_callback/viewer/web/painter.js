// Paints the canvases that can be seen, and only those whose content has changed.

/**
 * An element that is painted after it was rendered.
 * @typedef {HTMLElement & {paint: (element: any) => void, paintKey: string, paintedKey?: string, isSeen?: boolean}} Painted
 */

export class Painter {
  /** @param {HTMLElement} root @param {() => void} requestRender */
  constructor(root, requestRender) {
    this.root = root;
    this.requestRender = requestRender;
    this.pictures = 0; // grows when a picture has been decoded
    /** @type {WeakSet<Element>} */
    this.known = new WeakSet();
    this.observer = new IntersectionObserver((entries) => this.see(entries), { rootMargin: "100px" });
  }

  /** @param {IntersectionObserverEntry[]} entries */
  see(entries) {
    for (const { target, isIntersecting } of entries) {
      const element = /** @type {Painted} */ (target);
      element.isSeen = isIntersecting;
      if (isIntersecting) this.paint(element);
    }
  }

  paintAll() {
    for (const found of this.root.querySelectorAll(".painted")) {
      const element = /** @type {Painted} */ (found);
      if (!this.known.has(element)) {
        this.known.add(element);
        this.observer.observe(element);
      }
      if (element.isSeen) this.paint(element);
    }
  }

  /** @param {Painted} element */
  paint(element) {
    const key = `${element.paintKey} ${this.pictures} ${element.clientWidth} ${devicePixelRatio}`;
    if (element.paintedKey === key) return;
    element.paintedKey = key;
    element.paint(element);
  }

  /** To be called when a picture has been decoded. */
  pictureIsReady = () => {
    this.pictures += 1;
    this.requestRender();
  };
}
