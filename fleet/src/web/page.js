"use strict";
// Reads the page again when the server says that something changed, and puts the new live part in place of the old one.
(() => {
  let timer = 0, busy = false, again = false;
  const refresh = async () => {
    timer = 0;
    if (busy || document.hidden) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.redirected && new URL(answer.url).pathname === "/login") { location.assign("/login"); return; }
      if (!answer.ok) return;
      const next = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
      const now = document.getElementById("live");
      if (next && now) {
        const open = new Set([...now.querySelectorAll("details[open][id]")].map((d) => d.id));
        next.querySelectorAll("details[id]").forEach((d) => { if (open.has(d.id)) d.open = true; });
        if (!now.contains(document.activeElement) || document.activeElement.tagName === "A") {
          now.replaceWith(document.adoptNode(next));
        } else { again = true; }
      }
    } catch { /* the next word from the server tries again */ } finally {
      busy = false;
      if (again) { again = false; soon(2000); }
    }
  };
  const soon = (ms) => { if (!timer) timer = setTimeout(refresh, ms); };
  const link = document.getElementById("link");
  const say = (state, words) => { if (link) { link.dataset.state = state; link.textContent = words; } };
  const source = new EventSource("/live");
  source.addEventListener("open", () => say("up", "live"));
  source.addEventListener("changed", () => soon(1000));
  source.addEventListener("error", () => say("away", "not live: the server is away"));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(0); });
})();
