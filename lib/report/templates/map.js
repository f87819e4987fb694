(function () {
  "use strict";
  var box = document.getElementById("map-box");
  if (!box) return;
  var points = JSON.parse(document.getElementById("map-points").textContent);
  var sheet = document.getElementById("map-sheet");
  var ring = box.querySelector(".ring"), tip = box.querySelector(".tip");
  var thumb = tip.querySelector(".thumb"), words = tip.querySelector(".words");
  var spoken = document.getElementById("map-spoken");
  var columns = Number(box.dataset.columns), rows = Number(box.dataset.rows);
  var current = -1;

  thumb.style.backgroundImage = 'url("' + sheet.src + '")';
  thumb.style.backgroundSize = columns * 96 + "px " + rows * 96 + "px";

  function show(index, aloud) {
    current = index;
    var point = points[index], width = box.clientWidth, height = box.clientHeight;
    var x = point[0] * width, y = point[1] * height;
    ring.style.left = x + "px";
    ring.style.top = y + "px";
    thumb.style.backgroundPosition = -(index % columns) * 96 + "px " + -Math.floor(index / columns) * 96 + "px";
    words.textContent = point[2];
    ring.hidden = tip.hidden = false;
    var left = x + 16 + tip.offsetWidth <= width ? x + 16 : x - 16 - tip.offsetWidth;
    var top = y + 16 + tip.offsetHeight <= height ? y + 16 : y - 16 - tip.offsetHeight;
    tip.style.left = Math.max(0, left) + "px";
    tip.style.top = Math.max(0, top) + "px";
    if (aloud) spoken.textContent = point[2];
  }

  function hide() { ring.hidden = tip.hidden = true; }

  function nearest(x, y) {
    var best = 0, least = Infinity;
    points.forEach(function (point, index) {
      var distance = Math.pow(point[0] - x, 2) + Math.pow(point[1] - y, 2);
      if (distance < least) { least = distance; best = index; }
    });
    return best;
  }

  function towards(dx, dy) {
    var from = points[current], best = -1, least = Infinity;
    points.forEach(function (point, index) {
      var x = point[0] - from[0], y = point[1] - from[1];
      var along = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (index === current || along <= 0 || aside > along) return;
      if (along + aside < least) { least = along + aside; best = index; }
    });
    return best;
  }

  function pointed(event) {
    var place = box.getBoundingClientRect();
    show(nearest((event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height), false);
  }

  box.addEventListener("pointermove", function (event) { if (event.pointerType === "mouse") pointed(event); });
  box.addEventListener("pointerdown", pointed);
  box.addEventListener("pointerleave", function (event) {
    if (event.pointerType === "mouse" && document.activeElement !== box) hide();
  });
  box.addEventListener("focus", function () { show(current < 0 ? nearest(0.5, 0.5) : current, true); });
  box.addEventListener("blur", hide);
  box.addEventListener("keydown", function (event) {
    var ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    var next = -1;
    if (event.key === "Escape") { hide(); return; }
    if (event.key === "Home") next = 0;
    else if (event.key === "End") next = points.length - 1;
    else if (ways[event.key]) next = current < 0 ? 0 : towards(ways[event.key][0], ways[event.key][1]);
    else return;
    event.preventDefault();
    if (next >= 0) show(next, true);
  });
  window.addEventListener("resize", hide);
})();
