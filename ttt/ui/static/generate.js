// Live regions, dropping a PNG anywhere on the page, copying a link. Independent of the server.
(() => {
  "use strict";

  const whenThere = (selector, use, tries = 100) => {
    const element = document.querySelector(selector);
    if (element) use(element);
    else if (tries > 0) setTimeout(() => whenThere(selector, use, tries - 1), 100);
  };

  document.documentElement.lang = "en";
  whenThere("#announce", (element) => {
    element.setAttribute("role", "status");
    element.setAttribute("aria-live", "polite");
  });

  let recalled = false;
  window.ttt = {
    // The form now shows the values of the link or of the browser's memory. Drop the link's values from the address,
    // so that a reload keeps what is typed from here on.
    recalled(models) {
      recalled = true;
      const address = new URL(window.location.href);
      for (const name of ["prompt", "candidates", "keep", "top_k", "top_p", "temperature", "seed"])
        address.searchParams.delete(name);
      if (models.includes(address.searchParams.get("model"))) address.searchParams.delete("model"); // else another tab's
      window.history.replaceState(null, "", address);
    },
    // Text for the browser's memory; until the form has been filled there is nothing to remember.
    keepForm(typed, names, values) {
      return recalled ? JSON.stringify(Object.fromEntries(names.map((name, i) => [name, values[i]]))) : typed;
    },
  };

  const isFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  let depth = 0;
  const show = (on) => document.body.classList.toggle("ttt-dropping", on);
  const take = (event) => {
    depth = 0;
    show(false);
    const input = document.querySelector('input[type=file][accept=".png"]');
    if (!input || !event.dataTransfer.files.length) return;
    const files = new DataTransfer();
    files.items.add(event.dataTransfer.files[0]);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  document.addEventListener("dragenter", (event) => { if (isFile(event)) { depth += 1; show(true); } });
  document.addEventListener("dragleave", (event) => {
    if (isFile(event)) { depth = Math.max(0, depth - 1); if (!depth) show(false); }
  });
  document.addEventListener("dragover", (event) => { if (isFile(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => { if (isFile(event)) { event.preventDefault(); take(event); } });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest ? event.target.closest(".ttt-copy") : null;
    if (!button) return;
    const link = window.location.origin + window.location.pathname + button.dataset.link;
    try {
      await navigator.clipboard.writeText(link);
      button.textContent = "Copied";
    } catch {
      window.prompt("Link to these settings:", link);
    }
    setTimeout(() => { button.textContent = "Copy link"; }, 2000);
  });
})();
