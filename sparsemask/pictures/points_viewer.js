/* A cloud to be turned by mouse. THREE and its TrackballControls stand before this text; the cloud is JSON in #cloud. */
(function () {
  'use strict';
  const byId = id => document.getElementById(id);
  const cloud = JSON.parse(byId('cloud').textContent);
  const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const steps = new Uint16Array(bytes(cloud.points).buffer); // little endian, as browsers' machines are
  const positions = new Float32Array(steps.length);
  for (let i = 0; i < steps.length; i++) positions[i] = (steps[i] - 32767.5) * cloud.step[i % 3];

  let renderer;
  try {
    renderer = new THREE.WebGLRenderer({ antialias: true });
  } catch (error) {
    byId('problem').hidden = false;
    return;
  }
  const place = byId('view');
  place.appendChild(renderer.domElement);
  renderer.domElement.tabIndex = 0;
  renderer.domElement.setAttribute('aria-label', 'The cloud: drag to turn it');

  // Round points of a size in metres, never smaller than a pixel or two.
  const material = new THREE.ShaderMaterial({
    uniforms: { size: { value: cloud.spacing }, high: { value: 1 }, least: { value: 1.5 }, top: { value: 1e9 } },
    vertexShader: `
      attribute vec3 paint; uniform float size, high, least, top; varying vec3 colour; varying float wide;
      void main() {
        vec4 seen = modelViewMatrix * vec4(position, 1.0);
        gl_Position = projectionMatrix * seen;
        wide = clamp(size * high * projectionMatrix[1][1] * 0.5 / -seen.z, least, 64.0);
        gl_PointSize = wide;
        if (position.z > top) gl_Position = vec4(2.0, 2.0, 2.0, 1.0); // clipped
        colour = paint;
      }`,
    fragmentShader: `
      varying vec3 colour; varying float wide;
      void main() {
        vec2 away = 2.0 * gl_PointCoord - 1.0;
        float far = dot(away, away);
        if (wide > 3.0 && far > 1.0) discard;
        gl_FragColor = vec4(colour * (wide > 5.0 ? 1.0 - 0.35 * far * far : 1.0), 1.0);
      }`,
  });
  const geometry = new THREE.BufferGeometry();
  geometry.setAttribute('position', new THREE.BufferAttribute(positions, 3));
  const paint = new THREE.BufferAttribute(new Uint8Array(positions.length), 3, true);
  geometry.setAttribute('paint', paint);
  const points = new THREE.Points(geometry, material);
  points.frustumCulled = false;
  const scene = new THREE.Scene().add(points);

  const reach = cloud.reach; // metres around the middle that hold nearly all points
  const camera = new THREE.PerspectiveCamera(45, 1, reach / 500, reach * 60);
  const controls = new THREE.TrackballControls(camera, renderer.domElement);
  Object.assign(controls, {
    rotateSpeed: 2.2, zoomSpeed: 1.2, panSpeed: 0.6, dynamicDampingFactor: 0.35,
    minDistance: reach / 100, maxDistance: reach * 20,
  });
  let stale = true;

  function look(elevation) {
    const [up, side] = [elevation, -118].map(degrees => degrees * Math.PI / 180);
    const around = elevation > 80 ? -Math.PI / 2 : side; // from above, x is to the right
    controls.reset();
    camera.up.set(0, 0, 1);
    camera.position.setFromSphericalCoords(2.3 * reach, 0, 0).set(
      Math.cos(up) * Math.cos(around), Math.cos(up) * Math.sin(around), Math.sin(up)).multiplyScalar(2.3 * reach);
    controls.target.set(0, 0, 0);
    camera.lookAt(controls.target);
    stale = true;
  }

  function fit() {
    const [wide, high] = [place.clientWidth, place.clientHeight];
    renderer.setPixelRatio(window.devicePixelRatio);
    renderer.setSize(wide, high);
    material.uniforms.high.value = high * window.devicePixelRatio;
    material.uniforms.least.value = 1.5 * window.devicePixelRatio;
    camera.aspect = wide / Math.max(1, high);
    camera.updateProjectionMatrix();
    controls.handleResize();
    stale = true;
  }

  // The horizon stays level, and the cloud does not turn over when the camera reaches the zenith.
  const before = new THREE.Vector3(), eye = new THREE.Vector3();
  function frame() {
    requestAnimationFrame(frame);
    before.subVectors(camera.position, controls.target);
    controls.update();
    eye.subVectors(camera.position, controls.target);
    if (!eye.equals(before)) {
      const length = eye.length(), flat = Math.hypot(eye.x, eye.y);
      const least = 0.02 * length, over = before.x * eye.x + before.y * eye.y < 0 && flat < 0.5 * length;
      if (flat < least || over) {
        const share = least / Math.max(Math.hypot(before.x, before.y), 1e-9);
        eye.set(before.x * share, before.y * share, Math.sign(before.z) * Math.sqrt(length * length - least * least));
        camera.position.addVectors(controls.target, eye);
      }
      stale = true;
    }
    camera.up.set(0, 0, 1);
    if (!stale) return;
    stale = false;
    camera.lookAt(controls.target);
    renderer.render(scene, camera);
  }

  const data = cloud.layers.map(layer => bytes(layer.data));
  function choose(number) {
    const layer = cloud.layers[number];
    if (layer.colours) {
      const table = layer.colours.flat();
      for (let i = 0; i < paint.array.length; i++) paint.array[i] = table[3 * data[number][Math.floor(i / 3)] + i % 3];
    } else paint.array.set(data[number]);
    paint.needsUpdate = true;
    document.querySelectorAll('#layers button').forEach((one, k) => one.setAttribute('aria-pressed', k === number));
    byId('legend').replaceChildren(...(layer.legend || []).map(([k, name, share]) => {
      const row = document.createElement('li'), swatch = document.createElement('span');
      swatch.className = 'swatch';
      swatch.style.background = `rgb(${layer.colours[k]})`;
      const amount = document.createElement('span');
      amount.className = 'share';
      amount.textContent = share;
      row.append(swatch, name, amount);
      return row;
    }));
    stale = true;
  }

  byId('layers').append(...cloud.layers.map((layer, number) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = layer.name;
    button.addEventListener('click', () => choose(number));
    return button;
  }));
  byId('size').addEventListener('input', event => {
    material.uniforms.size.value = cloud.spacing * 2 ** event.target.valueAsNumber;
    stale = true;
  });
  const [low, top, roof] = cloud.heights; // the roof of a room is taken off at first
  const cut = () => {
    const share = byId('height').valueAsNumber;
    material.uniforms.top.value = share < 1 ? low + share * (top - low) : 1e9;
    stale = true;
  };
  byId('height').addEventListener('input', cut);
  if (roof !== null) byId('height').value = Math.floor(100 * (roof - low) / (top - low)) / 100;
  const ground = () => {
    const light = byId('light').checked;
    document.body.classList.toggle('light', light);
    renderer.setClearColor(light ? 0xffffff : 0x2b3038);
    stale = true;
  };
  byId('light').addEventListener('change', ground);
  byId('bird').addEventListener('click', () => look(89));
  byId('beside').addEventListener('click', () => look(35));
  window.addEventListener('keydown', event => {
    const number = Number(event.key) - 1;
    if (cloud.layers[number] && !event.ctrlKey && !event.metaKey && !event.altKey) choose(number);
  });
  window.addEventListener('resize', fit);
  fit();
  ground();
  cut();
  look(35);
  choose(0);
  frame();
}());
