"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const title = document.title;

  // Which view is seen is decided by style.css; here the rest of the page follows.
  function arrive() {
    const view = all("main > .view").find((each) => each.checkVisibility());
    const section = view.classList.contains("run") ? "/runs" : view.id;
    for (const link of all(".top li a")) {
      if (link.hash === `#${section}`) {
        link.setAttribute("aria-current", "page");
        // scrollIntoView would let the keyboard go on from here, and not from what was opened.
        const list = link.closest("ul");
        list.scrollLeft = link.offsetLeft - (list.clientWidth - link.offsetWidth) / 2;
      } else link.removeAttribute("aria-current");
    }
    document.title = view.id === "/" ? title : `${view.querySelector("h2").firstChild.textContent.trim()} – ${title}`;
    document.querySelector("details:target")?.setAttribute("open", "");
  }
  for (const event of ["load", "hashchange"]) addEventListener(event, arrive);
  // By itself the link would take the place of the view's in the address.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });

  // Where there is no room for columns, each number has its head before it.
  for (const table of all(".scroll table")) {
    const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    table.classList.add("stack");
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, n) => (cell.dataset.head = heads[n]));
  }

  for (const input of all("input[data-find]")) {
    const rows = [...document.getElementById(input.dataset.find).tBodies[0].rows];
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      input.closest("p").querySelector("output").textContent =
        `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
    });
  }

  const dialog = document.getElementById("enlarged");
  for (const button of all(".enlarge")) {
    button.addEventListener("click", () => {
      const image = button.querySelector("img");
      dialog.querySelector("div").replaceChildren(image.cloneNode());
      dialog.querySelector("p").textContent = image.alt;
      dialog.showModal();
    });
  }
})();
