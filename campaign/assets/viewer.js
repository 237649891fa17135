"use strict";
(function () {
  const molecules = JSON.parse(document.getElementById("molecules").textContent);
  const stage = document.getElementById("stage");
  const caption = document.getElementById("caption");
  const forms = document.getElementById("forms");
  let viewer = null;
  try {
    viewer = $3Dmol.createViewer(stage, { backgroundColor: "#f8fafc", antialias: true });
  } catch (error) {
    viewer = null;
  }
  if (!viewer) {
    stage.textContent = "This browser offers no WebGL, which the 3D view needs.";
    return;
  }
  let current = 0;
  let form = "generated";

  function show() {
    const molecule = molecules[current];
    const which = molecule[form] ? form : "generated";
    viewer.removeAllModels();
    viewer.addModel(molecule[which], "sdf");
    viewer.setStyle({}, { stick: { radius: 0.12 }, sphere: { scale: 0.26 } });
    viewer.zoomTo();
    viewer.render();
    caption.textContent = "No. " + molecule.rank + "  " + molecule.smiles;
    for (const button of forms.children) {
      button.disabled = !molecule[button.dataset.form];
      button.setAttribute("aria-pressed", String(button.dataset.form === which));
    }
    for (const card of document.querySelectorAll("[data-molecule]")) {
      card.setAttribute("aria-pressed", String(Number(card.dataset.molecule) === current));
    }
  }

  for (const button of forms.children) {
    button.addEventListener("click", function () { form = button.dataset.form; show(); });
  }
  for (const card of document.querySelectorAll("[data-molecule]")) {
    card.addEventListener("click", function () { current = Number(card.dataset.molecule); show(); });
  }
  window.addEventListener("resize", function () { viewer.resize(); });
  show();
})();
