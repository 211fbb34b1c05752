"use strict";
(() => {
  const one = (selector) => document.querySelector(selector);
  const largest = Number(document.body.dataset.largest);
  const state = one("#state"), network = one("#network"), file = one("#file"), drop = one(".drop");
  const pair = one(".pair"), before = one(".before"), after = one(".after"), divide = one("#divide"), whole = one("#whole");
  let last = null, asked = 0, addresses = [];

  function say(text, kind) {
    state.textContent = text;
    state.className = kind || "";
  }

  // A picture of an answer as an address that elements take; those of the answer before are given back.
  function address(shown) {
    const bytes = Uint8Array.from(atob(shown.data), (letter) => letter.charCodeAt(0));
    addresses.push(URL.createObjectURL(new Blob([bytes], { type: shown.kind })));
    return addresses[addresses.length - 1];
  }

  function element(name, text, kind) {
    const made = document.createElement(name);
    made.textContent = text || "";
    if (kind) made.className = kind;
    return made;
  }

  const percent = (share) => share > 0 && share < 0.001 ? "< 0.1 %" : (100 * share).toFixed(1) + " %";
  const milliseconds = (value) => value < 10 ? value.toFixed(1) + " ms" : Math.round(value).toLocaleString("en") + " ms";

  function tiles(answer) {
    const items = Object.entries(answer.times).map(([what, value]) => [what, milliseconds(value)]);
    const both = answer.times["with masks"] && answer.times["without masks"];
    if (both) items.push(["gain by masks", (answer.times["without masks"] / answer.times["with masks"]).toFixed(2) + " ×"]);
    items.push(["picture", answer.size.join("x")], ...Object.entries(answer.facts));
    one("#figures .tiles").replaceChildren(...items.map(([what, value]) => {
      const item = element("li");
      item.append(element("span", what), element("strong", value));
      return item;
    }));
  }

  function classes(answer) {
    one("#shares tbody").replaceChildren(...answer.classes.map((found) => {
      const row = element("tr"), head = element("th"), cell = element("td"), bar = element("span", "", "bar");
      const swatch = element("span", "", "swatch");
      head.scope = "row";
      swatch.style.background = "rgb(" + found.colour.join(",") + ")";
      head.append(swatch, found.name);
      bar.style.setProperty("--v", found.share);
      cell.append(bar);
      row.append(head, cell, element("td", percent(found.share)));
      return row;
    }));
  }

  function masks(answer) {
    one(".gallery").replaceChildren(...answer.masks.map((shown) => {
      const figure = element("figure"), image = element("img");
      image.src = address(shown);
      image.alt = shown.label;
      figure.append(image, element("figcaption", shown.label));
      return figure;
    }));
  }

  // As wide as the place, no higher than the window, and no larger than it is, or pixel by pixel.
  function fit() {
    if (!after.naturalWidth) return;
    const ratio = after.naturalWidth / after.naturalHeight, place = one(".view").clientWidth;
    const width = whole.checked ? after.naturalWidth / window.devicePixelRatio
      : Math.min(place, Math.max(after.naturalWidth, 480), 0.82 * window.innerHeight * ratio);
    pair.style.width = width + "px";
    pair.style.aspectRatio = String(ratio);
    one(".under").style.width = Math.min(width, place) + "px";
  }

  async function show(answer) {
    addresses.forEach((made) => URL.revokeObjectURL(made));
    addresses = [];
    tiles(answer);
    classes(answer);
    masks(answer);
    before.src = address(answer.before);
    after.src = address(answer.after);
    before.alt = answer.before.label;
    after.alt = answer.after.label;
    one(".left").textContent = answer.before.label;
    one(".right").textContent = answer.after.label;
    one("#save").href = after.src;
    one("#save").download = answer.after.kind === "image/png" ? "result.png" : "result.jpg";
    one(".notes").replaceChildren(...answer.notes.map((note) => element("p", note)));
    one("#figures").hidden = one("#result").hidden = false;
    one("#shares").hidden = !answer.classes.length;
    one("#places").hidden = !answer.masks.length;
    await Promise.all([before.decode(), after.decode()]);
    fit();
  }

  async function compute() {
    if (!last) return;
    if (last.size > largest) {
      say("The file is larger than " + largest / 1e6 + " MB, which are taken here.", "error");
      return;
    }
    const mine = ++asked;
    say("Computing …", "busy");
    try {
      const reply = await fetch("/compute?network=" + network.value, { method: "POST", body: last });
      const answer = await reply.json();
      if (mine !== asked) return;  // another was asked for meanwhile
      if (!reply.ok) {
        say(answer.error, "error");
        return;
      }
      await show(answer);
      say("Done: " + answer.network + ".");
    } catch (error) {
      if (mine === asked) say("No answer: is the server still running?", "error");
    }
  }

  function take(files) {
    if (!files || !files.length) return;
    last = files[0];
    compute();
  }

  file.addEventListener("change", () => {
    take(file.files);
    file.value = "";  // so that the same file can be chosen again
  });
  network.addEventListener("change", compute);
  divide.addEventListener("input", () => pair.style.setProperty("--at", divide.value + "%"));
  whole.addEventListener("change", fit);
  window.addEventListener("resize", fit);
  window.addEventListener("paste", (event) => take(event.clipboardData.files));
  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  window.addEventListener("dragleave", () => drop.classList.remove("over"));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
})();
