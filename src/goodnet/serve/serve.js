// What makes the page comfortable; without it, forms are sent as they are and the page loads itself again.
"use strict";
(function () {
  const find = (where, what) => where.querySelector(what);
  const parsed = async (response) => new DOMParser().parseFromString(await response.text(), "text/html");

  function dropping(box) {
    const input = find(box, "input[type=file]");
    const over = (on) => (event) => {
      event.preventDefault();
      box.classList.toggle("over", on);
    };
    box.addEventListener("dragover", over(true));
    box.addEventListener("dragleave", over(false));
    box.addEventListener("drop", (event) => {
      over(false)(event);
      if (event.dataTransfer.files.length) {
        input.files = event.dataTransfer.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
      }
    });
  }

  // A file that is dropped beside a box must not replace the page.
  ["dragover", "drop"].forEach((kind) => document.addEventListener(kind, (event) => event.preventDefault()));

  function tooLarge(form) {
    for (const box of form.querySelectorAll("[data-drop]")) {
      const file = find(box, "input").files[0];
      const limit = Number(box.dataset.limit);
      if (file && file.size > limit) {
        return `${file.name}: expected at most ${Math.round(limit / 1048576)} MB, got ` +
          `${Math.ceil(file.size / 1048576)}; goodnet serve --help says how to take more`;
      }
    }
    return "";
  }

  // Sends a form with files; its answer is a page, of which only the reason is shown where it was refused.
  function sending(form, busy, done) {
    const problem = find(form, "[data-problem]");
    const say = (text) => {
      problem.textContent = text;
      problem.hidden = !text;
    };
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      say(tooLarge(form));
      if (!problem.hidden) return;
      const button = find(form, "button");
      const status = find(form, "[data-busy]");
      button.disabled = true;
      status.textContent = busy;
      try {
        const response = await fetch(form.action, { method: "POST", body: new FormData(form) });
        const page = await parsed(response);
        const error = find(page, "#error");
        if (response.ok) done(response, page);
        else say(error ? error.textContent : `goodnet answered with ${response.status}`);
      } catch (error) {
        say("The connection to goodnet was lost; is it still running in its terminal?");
      }
      button.disabled = false;
      status.textContent = "";
    });
  }

  function ready(root) {
    root.querySelectorAll("[data-drop]").forEach(dropping);
    root.querySelectorAll("[data-upload]").forEach((form) =>
      sending(form, "Sending …", (response) => window.location.assign(response.url)));
    root.querySelectorAll("[data-picture]").forEach((form) =>
      sending(form, "Looking …", (response, page) => {
        find(document, "#answers").prepend(...find(page, "#answers").children);
        form.reset();
      }));
    const job = find(document, "#job");
    if (job && job.dataset.events) watch(job);
  }

  // The page once more, into this one: what is read aloud and where the keyboard stands go along.
  async function again(job, status) {
    const response = await fetch(window.location.href);
    const page = await parsed(response);
    const fresh = find(page, "#job");
    if (!response.ok || !fresh) {
      window.location.reload();
      return;
    }
    document.title = page.title;
    job.replaceWith(document.adoptNode(fresh));
    const news = find(fresh, "[data-news]");
    status.textContent = news ? news.textContent : "";
    if (news && document.activeElement === document.body) news.focus();
    ready(fresh);
  }

  function watch(job) {
    const status = find(document, "[data-status]");
    const stage = find(job, "[data-stage]");
    const bar = find(job, "progress");
    const source = new EventSource(job.dataset.events);
    source.addEventListener("message", (event) => {
      const told = JSON.parse(event.data);
      if (!told.active || String(told.version) !== job.dataset.version) {
        source.close();
        again(job, status);
        return;
      }
      find(job, "[data-title]").textContent = told.title;
      find(job, "[data-times]").textContent = told.times;
      if (stage.textContent !== told.stage) stage.textContent = told.stage;
      if (told.percent === null) bar.removeAttribute("value");
      else bar.value = told.percent;
    });
    source.addEventListener("error", () => {
      find(job, "[data-times]").textContent = "No word from goodnet; trying again …";
    });
  }

  ready(document);
})();
