//! The live page in a real browser: headless Chromium, driven through chromedriver.
//!
//! Skipped with a word where they are not installed, unless `CI` is set: then that is a failure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use visaged::expression::derl::DerlModel;
use visaged::expression::{Emotion, NEUTRAL_SIDE_PX, Observation, ObservedFace, Probabilities};
use visaged::face::detect::DetectorModel;
use visaged::face::{Face, Landmarks, Rect, TrackId};
use visaged::frame::{CaptureTime, RgbImage};
use visaged::mirror::web::{Page, Server, router};
use visaged::mirror::{Hub, Networks, Status, TryOn};
use visaged::models::{Bundle, Task};
use visaged::nn::Settings;
use visaged::pool::Pool;
use visaged::synthesis::generator::GeneratorModel;
use visaged::synthesis::makeup::MakeupModels;

const PATIENCE: Duration = Duration::from_secs(30);

/// One browser at a time: they are heavy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

// ---- the browser ----

struct Driver {
    process: Child,
    address: SocketAddr,
    profile: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Driver {
    /// `None` where there is no browser and that is allowed.
    fn start() -> Option<Self> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let spawned = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = match spawned {
            Ok(process) => process,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "chromedriver cannot be started: {error}");
                eprintln!("skipped: chromedriver cannot be started ({error}); install chromium and chromium-driver");
                return None;
            }
        };
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = loop {
            let line = lines.next().expect("chromedriver says its port").unwrap();
            if let Some(rest) = line.split("successfully on port ").nth(1)
                && let Ok(port) = rest.trim_end_matches('.').parse()
            {
                break port;
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Some(Self { process, address, profile: tempfile::tempdir().unwrap(), _turn: turn })
    }

    async fn browser(&self, look: Look) -> Client {
        let mut options = json!({
            "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                format!("--user-data-dir={}", self.profile.path().display()),
                format!("--window-size={},{}", look.width_px, look.height_px),
            ],
        });
        if look.phone {
            let metrics = json!({"width": look.width_px, "height": look.height_px, "pixelRatio": 2.0});
            options["mobileEmulation"] = json!({"deviceMetrics": metrics});
        }
        if !look.script {
            options["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2});
        }
        let capabilities = json!({"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://{}", self.address))
            .await
            .expect("Chromium starts")
    }

    /// For what the client has no words: one request, its whole answer.
    fn ask(&self, method: &str, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (address, length) = (self.address, body.len());
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")?;
        // The driver keeps the connection open whatever it is asked.
        let (mut reader, mut length) = (BufReader::new(stream), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer)?;
        Ok(String::from_utf8(answer).unwrap())
    }

    /// What the page has written to its console at the level of errors since the last look.
    async fn console_errors(&self, browser: &Client) -> Vec<String> {
        let session = browser.session_id().await.unwrap().unwrap();
        let json = self.ask("POST", &format!("/session/{session}/se/log"), r#"{"type":"browser"}"#).unwrap();
        let entries: Value = serde_json::from_str(&json).unwrap();
        let entries = entries["value"].as_array().unwrap_or_else(|| panic!("no log: {json}")).clone();
        let errors = entries.iter().filter(|entry| entry["level"] == "SEVERE");
        errors.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Takes a browser with it that a failed test has left.
        let _ = self.ask("GET", "/shutdown", "");
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Clone, Copy)]
struct Look {
    width_px: u32,
    height_px: u32,
    phone: bool,
    script: bool,
}

const DESK: Look = Look { width_px: 1920, height_px: 1080, phone: false, script: true };
const PHONE: Look = Look { width_px: 360, height_px: 740, phone: true, script: true };

/// Runs `test` with a browser, if there is one.
fn with_browser(look: Look, test: impl AsyncFnOnce(&Driver, &Client)) {
    let Some(driver) = Driver::start() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let browser = driver.browser(look).await;
        test(&driver, &browser).await;
        browser.close().await.unwrap();
    });
}

/// Waits until the script's value is true.
async fn wait_until(browser: &Client, what: &str, condition: &str) {
    let script = format!("return Boolean({condition});");
    let waiting = async { while browser.execute(&script, vec![]).await.unwrap() != json!(true) {} };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        let text = browser.execute("return document.body.innerText;", vec![]).await.unwrap();
        panic!("waited in vain for {what}; the page says: {}", text.as_str().unwrap_or_default());
    }
}

async fn evaluate(browser: &Client, expression: &str) -> Value {
    browser.execute(&format!("return {expression};"), vec![]).await.unwrap()
}

// ---- a scene to look at ----

/// Two faces that walk and change, on a picture that changes with them; shown until dropped.
struct Scene {
    hub: Hub,
    on: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Scene {
    fn start() -> Self {
        let (hub, on) = (Hub::new(), Arc::new(AtomicBool::new(true)));
        hub.status(Status::Online);
        let thread = std::thread::spawn({
            let (hub, on) = (hub.clone(), Arc::clone(&on));
            move || play(&hub, &on)
        });
        Self { hub, on, thread: Some(thread) }
    }

    fn serve(&self, listen: SocketAddr) -> Server {
        self.serve_with(listen, None)
    }

    fn serve_with(&self, listen: SocketAddr, try_on: Option<TryOn>) -> Server {
        let page = Page { device: "lab/mirror".into(), mirrored: true };
        Server::start("web", listen, router(self.hub.clone(), &page, try_on)).unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.on.store(false, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn play(hub: &Hub, on: &AtomicBool) {
    let pool = Pool::<RgbImage>::new(4);
    for seq in 0_u64.. {
        if !on.load(Ordering::Relaxed) {
            return;
        }
        let time = seq as f32 / 30.0;
        let observation = observe(seq, time);
        let mut picture = pool.take();
        paint(&mut picture, &observation);
        hub.show(picture, &observation);
        if seq % 15 == 0 {
            let face = &observation.faces[0];
            let payload = json!({
                "schema": "visaged.face.v1", "device": "mirror", "seq": seq / 15, "event": "sample", "track": face.track.0,
                "emotion": face.emotion, "neutrality": face.neutrality, "latency_ms": 21.5,
            });
            hub.message("visaged/v1/lab/mirror/face", payload.to_string().as_bytes());
        }
        std::thread::sleep(Duration::from_millis(33));
    }
}

fn observe(frame_seq: u64, time: f32) -> Observation {
    let (width_px, height_px) = (640, 480);
    let faces = [(1, 150.0, 0.0), (2, 90.0, 2.0)].map(|(track, side, phase)| {
        let x = 240.0 + 160.0 * (time * 0.5 + 1.7 * phase).sin();
        let (top, probabilities) = mood(time + phase);
        ObservedFace {
            track: TrackId(track),
            face: Face {
                rect: Rect { x, y: 180.0 - side / 3.0, width: side, height: side * 1.25 },
                landmarks: Landmarks::default(),
                score: 0.9,
            },
            quality: 0.8,
            emotion: top,
            probabilities,
            neutrality: probabilities.0[0],
            neutral: (0..NEUTRAL_SIDE_PX * NEUTRAL_SIDE_PX).map(|i| (60 + i % 64 + i / 64) as u8).collect(),
        }
    });
    Observation { frame_seq, time: CaptureTime::now(), width_px, height_px, faces: faces.into(), ended: vec![] }
}

/// Another emotion every two seconds.
fn mood(time: f32) -> (Emotion, Probabilities) {
    let now = (time / 2.0) as usize % 8;
    let mut probabilities = [0.04; 8];
    probabilities[now] = 0.72;
    (Emotion::ALL[now], Probabilities(probabilities))
}

fn paint(picture: &mut RgbImage, observation: &Observation) {
    picture.resize(observation.width_px, observation.height_px);
    let width = picture.width_px as usize;
    for (i, pixel) in picture.data.chunks_exact_mut(3).enumerate() {
        let (x, y) = ((i % width) as f32, (i / width) as f32);
        let inside = observation.faces.iter().any(|face| {
            let rect = face.face.rect;
            let (dx, dy) = ((x - rect.x) / rect.width - 0.5, (y - rect.y) / rect.height - 0.5);
            dx * dx + dy * dy < 0.25
        });
        let shade = observation.frame_seq as u8;
        let colour = if inside { [224, 172, 140] } else { [40, (y / 4.0) as u8, 0] };
        pixel.copy_from_slice(&colour);
        pixel[2] = pixel[2].wrapping_add(shade / 2);
    }
}

// ---- what must be so ----

#[test]
fn the_page_shows_a_face_a_changing_emotion_and_the_messages_without_a_console_error() {
    with_browser(DESK, async |driver, browser| {
        let scene = Scene::start();
        let server = scene.serve(any_port());
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();

        wait_until(browser, "two boxes", "document.getElementById('overlay').dataset.boxes === '2'").await;
        let painted = "(() => { const c = document.getElementById('overlay'); \
             return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0); })()";
        wait_until(browser, "a painted box", painted).await;
        wait_until(browser, "the picture", "document.getElementById('picture').naturalWidth === 640").await;
        wait_until(browser, "a neutral face", "document.getElementById('neutral-face').naturalWidth === 64").await;
        wait_until(browser, "the state", "document.getElementById('state-text').textContent === 'online'").await;
        wait_until(browser, "a rate", "Number(document.getElementById('fps').textContent) > 0").await;
        wait_until(browser, "messages", "document.querySelectorAll('#messages li').length > 2").await;
        wait_until(browser, "their topic", "document.querySelector('#messages .topic').textContent === 'face'").await;
        assert_eq!(evaluate(browser, "document.querySelectorAll('#bars li').length").await, json!(8));

        let emotion = "document.getElementById('headline-emotion').textContent";
        let first = evaluate(browser, emotion).await;
        wait_until(browser, "another emotion", &format!("{emotion} !== {first} && {emotion} !== ''")).await;

        let pixels = "(() => { const c = document.createElement('canvas'); c.width = c.height = 16; \
             const pen = c.getContext('2d'); pen.drawImage(document.getElementById('picture'), 0, 0, 16, 16); \
             return pen.getImageData(0, 0, 16, 16).data.join(); })()";
        let before = evaluate(browser, pixels).await;
        wait_until(browser, "a picture that moves", &format!("{pixels} !== {before}")).await;

        wait_until(
            browser,
            "the plot",
            "document.getElementById('plot').getContext('2d').getImageData(0, 0, 4000, 300).data.some((v) => v > 0)",
        )
        .await;
        assert_eq!(driver.console_errors(browser).await, Vec::<String>::new());
    });
}

#[test]
fn markup_in_a_payload_or_a_topic_is_shown_as_text() {
    with_browser(DESK, async |driver, browser| {
        let scene = Scene::start();
        let server = scene.serve(any_port());
        let hostile = r#"<script>document.title='taken'</script><img src=x onerror="document.title='taken'">"#;
        scene.hub.message(hostile, hostile.as_bytes());
        scene.hub.message("t/json", json!({ "event": hostile, hostile: [hostile] }).to_string().as_bytes());
        scene.hub.status(Status::Degraded { reason: hostile.into() });
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();
        let shown =
            "document.getElementById('messages').textContent.split(\"<script>document.title='taken'\").length > 4";
        wait_until(browser, "the payload as text", shown).await;
        wait_until(browser, "the reason as text", "document.getElementById('veil').textContent.startsWith('<script>')")
            .await;
        browser
            .execute("document.querySelectorAll('#messages summary').forEach((one) => one.click());", vec![])
            .await
            .unwrap();
        wait_until(browser, "the whole payload", "document.querySelector('#messages pre')").await;
        assert_eq!(evaluate(browser, "document.querySelectorAll('main script, #messages img').length").await, json!(0));
        assert_eq!(evaluate(browser, "document.title").await, json!("visaged · lab/mirror"));
        assert_eq!(driver.console_errors(browser).await, Vec::<String>::new());
    });
}

/// A portrait that stands still, with where its face is; shown until dropped.
fn portrait_scene() -> Scene {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces/sfhq_0000.jpg");
    let picture = visaged::picture::open(&path, visaged::picture::PictureLimits::default()).unwrap();
    let at = |(x, y): (f32, f32)| visaged::face::Point { x, y };
    let places = [(96.61, 111.03), (169.01, 114.81), (132.04, 150.34), (96.4, 176.63), (159.11, 180.34)];
    let face = Face {
        rect: Rect { x: 54.56, y: 25.88, width: 150.76, height: 200.87 },
        landmarks: places.map(at),
        score: 0.9,
    };
    let (hub, on) = (Hub::new(), Arc::new(AtomicBool::new(true)));
    hub.status(Status::Online);
    let thread = std::thread::spawn({
        let (hub, on) = (hub.clone(), Arc::clone(&on));
        move || {
            let pool = Pool::<RgbImage>::new(4);
            for frame_seq in 0.. {
                if !on.load(Ordering::Relaxed) {
                    return;
                }
                let (emotion, probabilities) = mood(0.0);
                let neutral = vec![90; NEUTRAL_SIDE_PX * NEUTRAL_SIDE_PX];
                let (track, quality, neutrality) = (TrackId(1), 0.8, 0.5);
                let observed = ObservedFace { track, face, quality, emotion, probabilities, neutrality, neutral };
                let (width_px, height_px) = (picture.width_px, picture.height_px);
                let (time, faces) = (CaptureTime::now(), vec![observed]);
                let observation = Observation { frame_seq, time, width_px, height_px, faces, ended: vec![] };
                let mut shown = pool.take();
                shown.clone_from(&picture);
                hub.show(shown, &observation);
                std::thread::sleep(Duration::from_millis(40));
            }
        }
    });
    Scene { hub, on, thread: Some(thread) }
}

fn try_on() -> TryOn {
    let nn = Settings::default();
    let stand_in = |task: Task| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bundles").join(task.name());
        Bundle::load(task, Some(&folder)).unwrap()
    };
    let networks = Networks {
        detector: DetectorModel::new(Bundle::built_in(Task::Detector).unwrap(), nn).unwrap(),
        derl: DerlModel::new(Bundle::built_in(Task::Derl).unwrap(), nn).unwrap(),
        makeup: Some(MakeupModels::new(&stand_in(Task::Makeup), nn).unwrap()),
        generator: Some(GeneratorModel::new(stand_in(Task::Identity), nn).unwrap()),
    };
    TryOn::new(networks, |task| panic!("the {task} network failed"))
}

#[test]
fn a_reference_picture_can_be_tried_on_and_the_page_says_that_the_face_is_synthetic() {
    with_browser(DESK, async |driver, browser| {
        let scene = portrait_scene();
        let page = Page { device: "lab/mirror".into(), mirrored: false };
        let server = Server::start("web", any_port(), router(scene.hub.clone(), &page, Some(try_on()))).unwrap();
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();
        wait_until(browser, "the controls", "!document.getElementById('try-on').hidden").await;
        wait_until(browser, "the picture", "document.getElementById('picture').naturalWidth > 0").await;
        assert_eq!(evaluate(browser, "document.getElementById('synthetic').hidden").await, json!(true));
        assert_eq!(evaluate(browser, "document.querySelector('[data-show=makeup]').disabled").await, json!(true));

        // A cheek, and a corner that is no face: the pixels as they are seen.
        let seen = "(() => { const image = document.getElementById('picture'); const c = document.createElement('canvas'); \
             c.width = image.naturalWidth; c.height = image.naturalHeight; const pen = c.getContext('2d'); \
             pen.drawImage(image, 0, 0); const at = (x, y) => [...pen.getImageData(x, y, 6, 6).data] \
             .reduce((sum, v) => sum + v, 0) / 144; return { cheek: at(110, 155), corner: at(2, 2) }; })()";
        let before = evaluate(browser, seen).await;
        let cheek = before["cheek"].as_f64().unwrap();

        // Dark, so that what is put on is seen: the stand-in bundle takes a third of the way to it.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reference.png");
        let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faces/sfhq_0000.jpg");
        let mut dark = image::open(source).unwrap().to_rgb8();
        dark.pixels_mut().for_each(|pixel| pixel.0 = pixel.0.map(|v| v / 2));
        dark.save(&path).unwrap();
        let file = browser.find(Locator::Id("try-on-file")).await.unwrap();
        file.send_keys(&path.display().to_string()).await.unwrap();
        let says = "document.getElementById('synthetic').textContent.startsWith('synthetic: make-up put on')";
        wait_until(browser, "the word that it is synthetic", says).await;
        wait_until(browser, "a darker cheek", &format!("{seen}.cheek < {cheek} - 4")).await;
        let corner = evaluate(browser, seen).await["corner"].as_f64().unwrap();
        assert!((corner - before["corner"].as_f64().unwrap()).abs() < 0.5, "only the face changes");

        let slide = "const slider = document.getElementById('try-on-strength'); slider.value = 0; \
             slider.dispatchEvent(new Event('input'));";
        browser.execute(slide, vec![]).await.unwrap();
        wait_until(browser, "the face as it is", &format!("Math.abs({seen}.cheek - {cheek}) < 0.5")).await;
        wait_until(browser, "no such word", "document.getElementById('synthetic').hidden").await;

        browser.execute("document.getElementById('try-on-forget').click();", vec![]).await.unwrap();
        wait_until(browser, "nothing to put on", "document.querySelector('[data-show=makeup]').disabled").await;

        let press = "document.querySelector('[data-show=avatar]').click();";
        for tone in ["first", "next"] {
            browser.execute(press, vec![]).await.unwrap();
            let says = "document.getElementById('synthetic').textContent === 'synthetic: nobody\\'s face'";
            browser.execute("document.getElementById('try-on-strength').value = 100; document.getElementById('try-on-strength').dispatchEvent(new Event('input'));", vec![]).await.unwrap();
            wait_until(browser, &format!("the {tone} avatar"), says).await;
        }
        wait_until(browser, "another face", &format!("Math.abs({seen}.cheek - {cheek}) > 2")).await;
        browser.execute("document.querySelector('[data-show=nothing]').click();", vec![]).await.unwrap();
        wait_until(browser, "the face as it is", &format!("Math.abs({seen}.cheek - {cheek}) < 0.5")).await;

        let notes = folder.path().join("notes.txt");
        std::fs::write(&notes, "no picture at all").unwrap();
        file.send_keys(&notes.display().to_string()).await.unwrap();
        let refused = "document.getElementById('try-on-said').textContent.includes('not a picture but text')";
        wait_until(browser, "why it was refused", refused).await;
        // The browser itself tells of the refusal.
        let errors = driver.console_errors(browser).await;
        assert!(errors.iter().all(|error| error.contains("415")), "{errors:?}");
    });
}

#[test]
fn without_a_bundle_the_page_shows_no_try_on() {
    with_browser(DESK, async |_, browser| {
        let scene = Scene::start();
        let server = scene.serve(any_port());
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();
        wait_until(browser, "the state", "document.getElementById('state-text').textContent === 'online'").await;
        assert_eq!(evaluate(browser, "document.getElementById('try-on').hidden").await, json!(true));
    });
}

#[test]
fn nothing_scrolls_sideways_on_a_phone() {
    with_browser(PHONE, async |_, browser| {
        let scene = Scene::start();
        scene.hub.message(&"long/".repeat(40), "unbroken".repeat(200).as_bytes());
        let server = scene.serve_with(any_port(), Some(try_on()));
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();
        wait_until(browser, "boxes", "document.getElementById('overlay').dataset.boxes === '2'").await;
        wait_until(browser, "messages", "document.querySelectorAll('#messages li').length > 1").await;
        assert_eq!(evaluate(browser, "innerWidth").await, json!(360));
        assert_eq!(evaluate(browser, "document.documentElement.scrollWidth").await, json!(360));
        let wide = "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > 361)\
             .map((one) => one.id || one.className).join()";
        assert_eq!(evaluate(browser, wide).await, json!(""));
    });
}

#[test]
fn a_kiosk_shows_everything_without_scrolling() {
    with_browser(DESK, async |_, browser| {
        let scene = Scene::start();
        let server = scene.serve_with(any_port(), Some(try_on()));
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();
        wait_until(browser, "boxes", "document.getElementById('overlay').dataset.boxes === '2'").await;
        wait_until(browser, "the controls", "!document.getElementById('try-on').hidden").await;
        let fits = "document.documentElement.scrollHeight <= innerHeight && \
             ['glass', 'notice', 'try-on', 'reading', 'minute', 'wire'].every((id) => { \
             const place = document.getElementById(id).getBoundingClientRect(); \
             return place.top >= 0 && place.bottom <= innerHeight && place.height > 0; })";
        wait_until(browser, "everything on one screen", fits).await;
    });
}

#[test]
fn the_page_comes_back_by_itself_when_the_daemon_restarts() {
    with_browser(DESK, async |_, browser| {
        let scene = Scene::start();
        let server = scene.serve(any_port());
        let address = server.address();
        browser.goto(&format!("http://{address}/")).await.unwrap();
        wait_until(browser, "boxes", "document.getElementById('overlay').dataset.boxes === '2'").await;
        server.stop();
        wait_until(browser, "the loss shown", "document.documentElement.dataset.link === 'away'").await;
        wait_until(browser, "no stale box", "document.getElementById('overlay').dataset.boxes === '0'").await;
        let _server = scene.serve(address);
        wait_until(browser, "boxes again", "document.getElementById('overlay').dataset.boxes === '2'").await;
        wait_until(browser, "the picture again", "document.getElementById('picture').naturalWidth === 640").await;
    });
}

#[test]
fn a_paused_list_of_messages_stands_still_and_catches_up() {
    with_browser(DESK, async |_, browser| {
        let scene = Scene::start();
        let server = scene.serve(any_port());
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();
        wait_until(browser, "messages", "document.querySelectorAll('#messages li').length > 1").await;
        let pause = browser.find(Locator::Id("pause")).await.unwrap();
        pause.send_keys("\u{e007}").await.unwrap();
        let shown = evaluate(browser, "document.querySelectorAll('#messages li').length").await;
        wait_until(browser, "held messages", "document.getElementById('pause').textContent.includes('(2 new)')").await;
        assert_eq!(evaluate(browser, "document.querySelectorAll('#messages li').length").await, shown);
        pause.click().await.unwrap();
        wait_until(
            browser,
            "the held ones",
            &format!("document.querySelectorAll('#messages li').length > {shown} + 1"),
        )
        .await;
    });
}

#[test]
fn a_face_can_be_chosen_with_the_keyboard() {
    with_browser(DESK, async |_, browser| {
        let scene = Scene::start();
        let server = scene.serve(any_port());
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();
        wait_until(browser, "the picker", "document.querySelectorAll('#picker button').length === 3").await;
        wait_until(
            browser,
            "the largest face",
            "document.getElementById('headline-face').textContent.startsWith('face 1')",
        )
        .await;
        let second = browser.find(Locator::Css("#picker [data-track='2']")).await.unwrap();
        second.send_keys("\u{e007}").await.unwrap();
        wait_until(
            browser,
            "the other face",
            "document.getElementById('headline-face').textContent.startsWith('face 2')",
        )
        .await;
    });
}

#[test]
fn without_script_the_stream_still_shows() {
    with_browser(Look { script: false, ..DESK }, async |_, browser| {
        let scene = Scene::start();
        let server = scene.serve(any_port());
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();
        wait_until(browser, "the picture", "document.getElementById('picture').naturalWidth === 640").await;
        let note = browser.find(Locator::Css(".noscript")).await.unwrap();
        assert!(note.is_displayed().await.unwrap());
    });
}

#[test]
fn a_page_in_the_background_is_not_a_viewer() {
    with_browser(DESK, async |_, browser| {
        let scene = Scene::start();
        let server = scene.serve(any_port());
        browser.goto(&format!("http://{}/", server.address())).await.unwrap();
        wait_until(browser, "boxes", "document.getElementById('overlay').dataset.boxes === '2'").await;
        assert!(scene.hub.is_watched());
        // The way a browser tells it: hidden, then the event.
        let hide = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => true}); \
             document.dispatchEvent(new Event('visibilitychange'));";
        browser.execute(hide, vec![]).await.unwrap();
        let left = async {
            while scene.hub.is_watched() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, left).await.expect("the hidden page still watches");
        let show = "delete document.hidden; document.dispatchEvent(new Event('visibilitychange'));";
        browser.execute(show, vec![]).await.unwrap();
        wait_until(browser, "boxes again", "document.getElementById('overlay').dataset.boxes === '2'").await;
    });
}

// ---- on request ----

/// The demo, as a newcomer starts it.
struct Demo {
    process: Child,
    address: String,
}

impl Demo {
    fn start() -> Self {
        let program = std::env::var_os("VISAGED").unwrap_or_else(|| env!("CARGO_BIN_EXE_visaged").into());
        let mut process = Command::new(program)
            .args(["demo", "--seconds", "300"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the demo says where its page is").unwrap();
            if let Some(start) = line.find("http://") {
                break line[start..].split_whitespace().next().unwrap().to_owned();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `VISAGED=target/release/visaged cargo test --test live_page screenshots -- --ignored` writes `docs/pictures/live-page.jpg` and
/// `live-page-phone.jpg`; without `VISAGED` from the build under test.
#[test]
#[ignore = "writes the pictures of the documentation from the running demo"]
fn screenshots() {
    let demo = Demo::start();
    let desk = Look { width_px: 1366, height_px: 940, ..DESK };
    let phone = Look { height_px: 1100, ..PHONE };
    for (look, seconds, name) in [(desk, 55, "live-page"), (phone, 20, "live-page-phone")] {
        with_browser(look, async |driver, browser| {
            browser.goto(&demo.address).await.unwrap();
            wait_until(browser, "two faces", "faces.length > 1").await;
            let liveliest = "choose(faces.toSorted((a, b) => a.probabilities[0] - b.probabilities[0])[0].track);";
            browser.execute(liveliest, vec![]).await.unwrap();
            let seen = async {
                let filled = format!("return Date.now() - samples[0]?.time > 1000 * {seconds} && faces.length > 1;");
                while browser.execute(&filled, vec![]).await.unwrap() != json!(true) {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            };
            tokio::time::timeout(3 * PATIENCE, seen).await.expect("a face and a minute's plot");
            let png = browser.screenshot().await.unwrap();
            assert_eq!(driver.console_errors(browser).await, Vec::<String>::new());
            let path = format!("{}/docs/pictures/{name}.jpg", env!("CARGO_MANIFEST_DIR"));
            let mut jpeg = Vec::new();
            let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 88);
            image::load_from_memory(&png).unwrap().to_rgb8().write_with_encoder(encoder).unwrap();
            assert!(jpeg.len() < 300_000, "{} bytes are too many for a README", jpeg.len());
            std::fs::write(path, jpeg).unwrap();
        });
    }
}

/// `cargo test --release --test live_page cost -- --ignored --nocapture` prints what viewers cost.
#[test]
#[ignore = "measures; says nothing about right and wrong"]
fn cost() {
    const FRAMES: u64 = 450;
    let hub = Hub::new();
    let page = Page { device: "lab/mirror".into(), mirrored: true };
    let server = Server::start("web", any_port(), router(hub.clone(), &page, None)).unwrap();
    for viewers in [0, 1, 4] {
        let mut streams = Vec::new();
        for path in ["/stream.mjpg", "/events"].repeat(viewers) {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
            let mut reader = stream.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
            streams.push(stream);
        }
        let pool = Pool::<RgbImage>::new(4);
        let (began, web_before, mut showing) = (std::time::Instant::now(), web_thread_ms(), Duration::ZERO);
        for seq in 0..FRAMES {
            let observation = observe(seq, seq as f32 / 30.0);
            let mut picture = pool.take();
            paint(&mut picture, &observation);
            let before = std::time::Instant::now();
            hub.show(picture, &observation);
            showing += before.elapsed();
            std::thread::sleep(
                (began + Duration::from_millis(seq * 1000 / 30)).duration_since(std::time::Instant::now()),
            );
        }
        println!(
            "{viewers} viewers, 640x480, 30 frames/s in: web thread {:.2} % of a core, show {:.1} us a frame",
            (web_thread_ms() - web_before) / began.elapsed().as_secs_f64() / 10.0,
            showing.as_secs_f64() * 1e6 / FRAMES as f64,
        );
        for stream in streams {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// CPU time of the thread `web` so far, to the nanosecond of the scheduler's account.
fn web_thread_ms() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let of_web =
        tasks.filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "web\n"));
    let ns = of_web.map(|task| std::fs::read_to_string(task.path().join("schedstat")).unwrap());
    ns.map(|line| line.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6).sum()
}
