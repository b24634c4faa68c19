"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const views = all("main > .view");
  const title = document.title;

  // Routes: `#/claims` is a view, `#/tables/digits/table1` a place within one.
  function place() {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch {
      return "/";
    }
  }
  function route(event) {
    const hash = place();
    const target = (hash.startsWith("/") && document.getElementById(hash)) || document.getElementById("/");
    const view = target.closest(".view");
    for (const other of views) other.hidden = other !== view;
    document.body.classList.toggle("on-run", view.classList.contains("run"));
    const section = view.classList.contains("run") ? "/runs" : view.id;
    for (const link of all(".top li a")) {
      if (link.hash === `#${section}`) {
        link.setAttribute("aria-current", "page");
        link.parentElement.parentElement.scrollLeft = link.offsetLeft - 40;
      } else link.removeAttribute("aria-current");
    }
    const heading = view.querySelector("h2");
    document.title = view.id === "/" ? title : `${heading.firstChild.textContent.trim()} – ${title}`;
    if (event) heading.focus({ preventScroll: true });
    if (target === view) scrollTo(0, 0);
    else target.scrollIntoView();
  }
  addEventListener("hashchange", route);
  // By itself the link would take the place of the view's in the address.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });

  // Tables: by the values of the files, not by their text; cells without a value come last.
  function order(a, b) {
    const numbers = [Number(a), Number(b)];
    return numbers.some(Number.isNaN) ? a.localeCompare(b, "en", { numeric: true }) : numbers[0] - numbers[1];
  }
  for (const button of all(".sortable .sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[head.cellIndex].dataset.sort;
      const rows = [...body.rows].sort((a, b) => {
        const [first, second] = [value(a), value(b)];
        if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
        return order(first, second) * (descending ? -1 : 1);
      });
      body.append(...rows);
    });
  }

  for (const form of all("form[data-filters]")) {
    // Its own `dataset` is hidden by the field of that name.
    const rows = [...document.getElementById(form.getAttribute("data-filters")).tBodies[0].rows];
    const show = () => {
      const chosen = new FormData(form);
      for (const row of rows) {
        row.hidden = !["verdict", "dataset"].every((name) => chosen.getAll(name).includes(row.dataset[name]));
      }
      form.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
    };
    form.addEventListener("change", show);
    show();
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
      dialog.querySelector(".plate").replaceChildren(image.cloneNode());
      dialog.querySelector("p").textContent = image.alt;
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });

  for (const steps of all(".steps")) {
    const [input, pictures] = [steps.querySelector("input"), all("[data-step]", steps)];
    const show = () => {
      pictures.forEach((picture, index) => (picture.hidden = index !== Number(input.value)));
      steps.querySelector("output").textContent = pictures[input.value].dataset.step;
      input.setAttribute("aria-valuetext", `step ${pictures[input.value].dataset.step}`);
    };
    input.addEventListener("input", show);
    show();
  }

  route();
})();
