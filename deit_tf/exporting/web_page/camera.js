// A picture from the camera: a preview with a button, or the phone's own camera where the page may not.

const byId = (id) => document.getElementById(id);

/** Wire the camera's buttons; `onPicture` gets a blob, `onError` a text for people. */
export function connectCamera(onPicture, onError) {
  byId("open-camera").addEventListener("click", () => open().catch((error) => onError(reason(error))));
  byId("close-camera").addEventListener("click", close);
  byId("take").addEventListener("click", async () => {
    const picture = await frame(byId("video"));
    close();
    onPicture(picture);
  });
}

async function open() {
  // Browsers give pages the camera on https and on this machine alone.
  if (!navigator.mediaDevices) {
    const input = byId("file");
    input.setAttribute("capture", "environment");
    input.click();
    input.removeAttribute("capture");
    return;
  }

  const video = byId("video");
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  await video.play();
  byId("choose").hidden = true;
  byId("camera").hidden = false;
  byId("take").focus();
}

function close() {
  const video = byId("video");
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  byId("camera").hidden = true;
  byId("choose").hidden = false;
  byId("open-camera").focus();
}

/** What a video shows, as a PNG file, which loses nothing. */
async function frame(video) {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

function reason(error) {
  if (error.name === "NotAllowedError") return "The browser was not allowed to use the camera.";
  if (error.name === "NotFoundError") return "There is no camera on this device.";
  return `The camera does not start: ${error.message}`;
}
