//! The pages in a real browser: headless Chromium, driven through chromedriver.
//!
//! Skipped with a word where they are not installed, unless `CI` is set: then that is a failure. `VISAGED_SCREENSHOTS` names a folder for pictures.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use support::{Mosquitto, Serve, program, sqlite, token, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

struct Driver {
    process: Child,
    port: u16,
    profile: tempfile::TempDir,
}

impl Driver {
    fn start() -> Option<Self> {
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
            if let Some(port) =
                line.split("successfully on port ").nth(1).and_then(|p| p.trim_end_matches('.').parse().ok())
            {
                break port;
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, port, profile: tempfile::tempdir().unwrap() })
    }

    async fn browser(&self, width_px: u32, height_px: u32, phone: bool, script: bool) -> Client {
        let mut options = json!({
            "args": ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                format!("--user-data-dir={}", self.profile.path().join(format!("{width_px}{script}")).display()),
                format!("--window-size={width_px},{height_px}")],
        });
        if phone {
            options["mobileEmulation"] =
                json!({"deviceMetrics": {"width": width_px, "height": height_px, "pixelRatio": 2.0}});
        }
        if !script {
            options["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2});
        }
        let capabilities = json!({"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", self.port))
            .await
            .expect("Chromium starts")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn log_in(browser: &Client, address: &str, token: &str) {
    browser.goto(&format!("http://{address}/")).await.unwrap();
    assert!(browser.current_url().await.unwrap().path() == "/login", "without a token one is asked for it");
    browser.find(Locator::Css("input[name=token]")).await.unwrap().send_keys(token).await.unwrap();
    browser.find(Locator::Css("button.main")).await.unwrap().click().await.unwrap();
    browser.wait().at_most(PATIENCE).for_element(Locator::Css("#live")).await.unwrap();
}

async fn text(browser: &Client, selector: &str) -> String {
    let reading = async {
        loop {
            // The element may be exchanged while it is read.
            let found = browser.wait().at_most(PATIENCE).for_element(Locator::Css(selector)).await;
            let element = found.unwrap_or_else(|error| panic!("{selector}: {error}"));
            if let Ok(text) = element.text().await {
                return text;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("{selector} could not be read"))
}

async fn wait_for_text(browser: &Client, selector: &str, wanted: &str) {
    let waiting = async {
        loop {
            // The element may be exchanged while it is read.
            if let Ok(element) = browser.find(Locator::Css(selector)).await
                && element.text().await.is_ok_and(|text| text.contains(wanted))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("waited in vain for {wanted:?} in {selector}: {}", text(browser, "body").await);
    }
}

async fn picture(browser: &Client, name: &str) {
    if let Some(folder) = std::env::var_os("VISAGED_SCREENSHOTS") {
        let png = browser.screenshot().await.unwrap();
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), png).unwrap();
    }
}

async fn scrolls_sideways(browser: &Client) -> bool {
    let script = "return document.documentElement.scrollWidth > document.documentElement.clientWidth;";
    browser.execute(script, vec![]).await.unwrap() == json!(true)
}

async fn is_ours(browser: &Client, address: &str) {
    let script = "return [...performance.getEntriesByType('resource')].map((e) => e.name);";
    let loaded = browser.execute(script, vec![]).await.unwrap();
    for name in loaded.as_array().unwrap() {
        assert!(name.as_str().unwrap().starts_with(&format!("http://{address}/")), "from elsewhere: {name}");
    }
}

#[test]
fn the_pages_show_the_fleet_a_device_and_a_roll_out_live_on_a_desk_on_a_phone_and_without_script() {
    let Some(driver) = Driver::start() else { return };
    let broker = Mosquitto::start();
    let (_folder, database) = sqlite();
    let serve = Serve::start(&database, &["--broker", &broker.url()]);
    let (read, operate) = (token(&database, "read"), token(&database, "operate"));
    let mut devices = program()
        .args([
            "simulate",
            "--broker",
            &broker.url(),
            "--devices",
            "24",
            "--rate",
            "2",
            "--telemetry-s",
            "1",
            "--command-s",
            "0.5",
        ])
        .args(["--drop-s", "20", "--restart-s", "30", "--clock-s", "10000", "--overflow-s", "5"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("devices", || (serve.json("GET", "/api/v1/overview", &read, "")["devices"] == 24).then_some(()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            at_a_desk(&driver, &serve, &operate).await;
            without_script(&driver, &serve, &read).await;
            on_a_phone(&driver, &serve, &operate).await;
        });
    }));
    let _ = devices.kill();
    let _ = devices.wait();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// `docs/pictures/README.md` says how.
#[test]
#[ignore = "takes pictures of a server that runs already: VISAGED_FLEET_PAGE is its HOST:PORT, VISAGED_FLEET_TOKEN may read it"]
fn pictures_of_a_fleet_at_work() {
    let given = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let (address, token) = (given("VISAGED_FLEET_PAGE"), given("VISAGED_FLEET_TOKEN"));
    let Some(driver) = Driver::start() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let sizes = [
            ("desk", driver.browser(1280, 1220, false, true).await),
            ("phone", driver.browser(360, 740, true, true).await),
        ];
        for (size, browser) in sizes {
            log_in(&browser, &address, &token).await;
            wait_for_text(&browser, "#link", "live").await;
            picture(&browser, &format!("fleet-{size}")).await;
            browser.find(Locator::Css("#devices td a")).await.unwrap().click().await.unwrap();
            wait_for_text(&browser, ".charts", "Temperature").await;
            picture(&browser, &format!("fleet-device-{size}")).await;
            browser.goto(&format!("http://{address}/rollouts")).await.unwrap();
            if let Ok(newest) = browser.find(Locator::Css("table a")).await {
                newest.click().await.unwrap();
                wait_for_text(&browser, "#live", "Wave 1").await;
                picture(&browser, &format!("fleet-rollout-{size}")).await;
            }
            browser.close().await.unwrap();
        }
    });
}

async fn at_a_desk(driver: &Driver, serve: &Serve, operate: &str) {
    let browser = driver.browser(1440, 1000, false, true).await;
    log_in(&browser, &serve.address, operate).await;
    assert!(text(&browser, ".head").await.contains("24 devices at 3 sites"));
    wait_for_text(&browser, "#link", "live").await;
    // What changes comes by itself: a mark in the old part is gone when the new one is there.
    browser.execute("document.querySelector('#live').dataset.old = '1';", vec![]).await.unwrap();
    browser
        .wait()
        .at_most(PATIENCE)
        .for_element(Locator::Css("#live:not([data-old])"))
        .await
        .expect("renewed by itself");
    picture(&browser, "fleet-desk").await;
    is_ours(&browser, &serve.address).await;

    browser.goto(&format!("http://{}/devices/site-01/device-00001", serve.address)).await.unwrap();
    wait_for_text(&browser, ".charts", "Temperature").await;
    browser
        .wait()
        .at_most(PATIENCE)
        .for_element(Locator::Css(".charts path.line[d*=L]"))
        .await
        .expect("a chart has a line");
    browser.find(Locator::Css("form[action$=commands] button")).await.unwrap().click().await.unwrap();
    wait_for_text(&browser, "#live", "succeeded").await;
    assert!(text(&browser, "#live").await.contains("uptime_s"), "ping was answered");
    picture(&browser, "device-desk").await;
    assert!(!scrolls_sideways(&browser).await);

    browser.goto(&format!("http://{}/rollouts", serve.address)).await.unwrap();
    browser.find(Locator::Css("input[name=name]")).await.unwrap().send_keys("<b>slower</b>").await.unwrap();
    picture(&browser, "rollouts-desk").await;
    browser.find(Locator::Css("form.grid button.main")).await.unwrap().click().await.unwrap();
    wait_for_text(&browser, ".head", "<b>slower</b>").await;
    wait_for_text(&browser, ".head", "completed").await;
    assert!(text(&browser, ".card").await.contains("Wave 3: 20 devices"));
    picture(&browser, "rollout-desk").await;
    browser.goto(&format!("http://{}/audit-log", serve.address)).await.unwrap();
    assert!(text(&browser, "#live").await.contains("rollout.create"));
    picture(&browser, "audit-log-desk").await;
    browser.close().await.unwrap();
}

async fn without_script(driver: &Driver, serve: &Serve, read: &str) {
    let browser = driver.browser(1200, 900, false, false).await;
    log_in(&browser, &serve.address, read).await;
    assert!(text(&browser, "#devices").await.contains("site-00/device-00000"));
    browser.goto(&format!("http://{}/?q=00007", serve.address)).await.unwrap();
    let found = text(&browser, "#devices").await;
    assert!(found.contains("device-00007") && !found.contains("device-00008"), "{found}");
    browser.goto(&format!("http://{}/devices/site-01/device-00001", serve.address)).await.unwrap();
    assert!(text(&browser, "#live").await.contains("Temperature"));
    assert!(
        browser.find(Locator::Css("form[action$=commands]")).await.is_err(),
        "who may only read is offered no command"
    );
    browser.close().await.unwrap();
}

async fn on_a_phone(driver: &Driver, serve: &Serve, operate: &str) {
    let browser = driver.browser(360, 740, true, true).await;
    log_in(&browser, &serve.address, operate).await;
    let pages = ["/", "/devices/site-01/device-00001", "/rollouts", "/audit-log"];
    for (page, name) in pages.into_iter().zip(["fleet", "device", "rollouts", "audit-log"]) {
        browser.goto(&format!("http://{}{page}", serve.address)).await.unwrap();
        assert!(!scrolls_sideways(&browser).await, "{page} scrolls sideways on a phone");
        picture(&browser, &format!("{name}-phone")).await;
    }
    browser.find(Locator::Css("nav a[href='/rollouts']")).await.unwrap().click().await.unwrap();
    browser.find(Locator::Css("table a")).await.unwrap().click().await.unwrap();
    wait_for_text(&browser, ".head", "slower").await;
    assert!(!scrolls_sideways(&browser).await);
    picture(&browser, "rollout-phone").await;
    browser.close().await.unwrap();
}
