// Search on pages that are opened from disk: browsers start no worker there, so a hidden frame
// takes its place. The theme's plugin `offline` would ask unpkg.com for such a script.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}));
      this.postMessage = data =>
        this.loaded.then(() => inside.dispatchEvent(new inside.MessageEvent("message", {data})));
      const script = inside.document.createElement("script");
      script.src = url;
      this.loaded = new Promise(resolve => (script.onload = resolve));
      inside.document.body.append(script);
    }
  };
