//! The command line: `serve`, `simulate`, `audit`, `token`, `models`, `bench`.
//!
//! Exit 0 on success, 1 on a failed run or an audit that finds something, 2 on bad usage or configuration; one line on stderr says what, where and
//! what to do; data go to stdout.

use std::io::{IsTerminal as _, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::audit::audit;
use crate::bench;
use crate::broker;
use crate::bundle::Bundle;
use crate::link::{BrokerAddress, BrokerUrl, LinkError, tls};
use crate::serve::{self, DEFAULT_LEASE};
use crate::simulate::{self, Faults};
use crate::store::{Added, BundleRow, DEFAULT_DATABASE, Place, Role, Store};
use crate::time::Micros;

/// The operator's side of visaged: registry, store, roll-outs, pages; a simulator; an audit.
#[derive(Debug, Parser)]
#[command(name = "visaged-fleet", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a fleet: store what devices send, drive roll-outs, answer HTTP
    Serve(ServeArgs),
    /// Be a fleet: devices over real MQTT connections, with seeded faults
    Simulate(SimulateArgs),
    /// Prove from the store that no event is missing that was not declared lost; exit 1 and a list otherwise
    Audit(AuditArgs),
    /// Make, list and take back the tokens that HTTP asks for
    Token(TokenArgs),
    /// Add, list and remove the model bundles that are hosted for roll-outs
    Models(ModelsArgs),
    /// Measure events a second through broker and store, and what serving costs
    Bench(bench::BenchArgs),
}

/// Where the store is.
#[derive(Clone, Debug, Args)]
pub struct DatabaseArgs {
    /// SQLite file, or postgres://USER:PASSWORD@HOST/DATABASE
    #[arg(long, global = true, env = "VISAGED_FLEET_DATABASE", default_value = DEFAULT_DATABASE, hide_env_values = true)]
    pub database: String,
}

/// Where the broker is.
#[derive(Clone, Debug, Args)]
pub struct BrokerArgs {
    /// mqtt://HOST:PORT or mqtts://HOST:PORT; without the port the usual one
    #[arg(long, env = "VISAGED_FLEET_BROKER")]
    pub broker: Option<BrokerUrl>,
    /// User at the broker
    #[arg(long, env = "VISAGED_FLEET_BROKER_USER", requires = "broker_password")]
    pub broker_user: Option<String>,
    /// Password at the broker; better given by the environment than here, where every user of the machine can read it
    #[arg(long, env = "VISAGED_FLEET_BROKER_PASSWORD", hide_env_values = true, requires = "broker_user")]
    pub broker_password: Option<String>,
    /// PEM file of the authorities that may vouch for the broker; the system's where none is given
    #[arg(long, env = "VISAGED_FLEET_BROKER_CA")]
    pub broker_ca: Option<PathBuf>,
    /// PEM file of this client's certificate
    #[arg(long, env = "VISAGED_FLEET_BROKER_CERTIFICATE", requires = "broker_key")]
    pub broker_certificate: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, env = "VISAGED_FLEET_BROKER_KEY", requires = "broker_certificate")]
    pub broker_key: Option<PathBuf>,
}

impl BrokerArgs {
    fn login(&self) -> Option<(String, String)> {
        self.broker_user.clone().zip(self.broker_password.clone())
    }

    pub(crate) fn address(&self, url: &BrokerUrl) -> Result<BrokerAddress, LinkError> {
        let client = self.broker_certificate.as_deref().zip(self.broker_key.as_deref());
        let tls = url.tls.then(|| tls(self.broker_ca.as_deref(), client)).transpose()?;
        Ok(BrokerAddress { host: url.host.clone(), port: url.port, login: self.login(), tls })
    }
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    /// Where HTTP listens; put a proxy with TLS before it where it is reached from elsewhere
    #[arg(long, env = "VISAGED_FLEET_LISTEN", default_value = "127.0.0.1:8790")]
    listen: SocketAddr,
    /// Where the embedded broker listens when no broker is named
    #[arg(long, env = "VISAGED_FLEET_EMBEDDED_LISTEN", default_value = "127.0.0.1:1883")]
    embedded_listen: SocketAddr,
    /// This process' name among several that serve; stays the same over restarts [default: the host's name]
    #[arg(long, env = "VISAGED_FLEET_INSTANCE")]
    instance: Option<String>,
    /// Name of the shared subscriptions: processes with the same one share the events
    #[arg(long, env = "VISAGED_FLEET_GROUP", default_value = "visaged-fleet")]
    group: String,
    /// No other process serves: plain subscriptions, which Mosquitto 2.0 keeps over its restart, where it forgets shared ones
    #[arg(long, env = "VISAGED_FLEET_ALONE")]
    alone: bool,
    /// Seconds after which an instance that is not heard counts as dead and its session is taken over
    #[arg(long, env = "VISAGED_FLEET_LEASE_S", default_value_t = DEFAULT_LEASE.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3600))]
    lease_s: u64,
    /// Seconds after which a device that says to be there and is not heard counts as silent
    #[arg(long, env = "VISAGED_FLEET_SILENT_AFTER_S", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    silent_after_s: u64,
    /// Remove events and telemetry after so many days [default: keep all]
    #[arg(long, env = "VISAGED_FLEET_KEEP_DAYS", value_parser = clap::value_parser!(u64).range(1..=36500))]
    keep_days: Option<u64>,
    /// Where devices reach this server over HTTPS, such as https://fleet.example: bundles are then fetched from there instead of sent over MQTT
    #[arg(long, env = "VISAGED_FLEET_PUBLIC_URL", value_parser = public_url)]
    public_url: Option<String>,
}

fn public_url(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").map(|rest| rest.trim_end_matches('/')).filter(|rest| !rest.is_empty());
    match host.filter(|host| !host.contains(['?', '#', '@', ' '])) {
        Some(host) => Ok(format!("https://{host}")),
        None => Err("want https://HOST, as devices fetch over HTTPS alone".into()),
    }
}

#[derive(Debug, Args)]
struct SimulateArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    /// Devices
    #[arg(long, default_value_t = 10)]
    devices: u32,
    /// Sites that they are spread over
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    sites: u32,
    /// What everything is drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Events a second and device
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    rate: f64,
    /// Seconds between two telemetry messages of a device
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    telemetry_s: f64,
    /// End after so many seconds [default: at Ctrl-C]
    #[arg(long)]
    seconds: Option<u64>,
    /// Each device ends after so many events
    #[arg(long)]
    events: Option<u64>,
    /// No faults
    #[arg(long)]
    calm: bool,
    /// Seconds between two cut connections of a device, on average
    #[arg(long, default_value_t = 30.0, value_parser = positive)]
    drop_s: f64,
    /// Seconds between two restarts of a device, on average
    #[arg(long, default_value_t = 60.0, value_parser = positive)]
    restart_s: f64,
    /// Seconds between two jumps of a device's clock, on average
    #[arg(long, default_value_t = 60.0, value_parser = positive)]
    clock_s: f64,
    /// Seconds between two times that a device gives up events and says so, on average
    #[arg(long, default_value_t = 60.0, value_parser = positive)]
    overflow_s: f64,
    /// Of a hundred events so many are sent twice
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=100))]
    duplicate_percent: u8,
    /// Of a hundred events so many are sent late
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=100))]
    late_percent: u8,
    /// Of a hundred commands that change something so many fail
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    command_failure_percent: u8,
    /// Seconds that such a command takes
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    command_s: f64,
    /// Of a thousand events so many vanish without a word, to see that the audit finds them
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    undeclared_loss_permille: u16,
    /// Write what was made here: one JSON line a boot
    #[arg(long)]
    ledger: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct AuditArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Pass over holes whose next event came within so many seconds: what is missing may still be on its way
    #[arg(long, default_value_t = 0)]
    grace_s: u64,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TokenArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make one; it is printed once and cannot be read again
    Create {
        /// What it allows
        #[arg(long)]
        role: Role,
        /// Whose it is: the actor in the audit log
        #[arg(long)]
        name: String,
    },
    /// Print names, roles and times
    List,
    /// Take one back
    Revoke {
        /// Which
        name: String,
    },
}

#[derive(Debug, Args)]
struct ModelsArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Host a bundle; prints the name to roll it out by
    Add {
        /// What `visaged models pack` wrote
        archive: PathBuf,
        /// Its signature [default: ARCHIVE.minisig]
        #[arg(long)]
        signature: Option<PathBuf>,
    },
    /// Print names, sizes, hashes and times
    List,
    /// Host one no longer
    Remove {
        /// Which
        name: String,
    },
}

/// A number above 0.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() && value < 1e9 => Ok(value),
        _ => Err("want a number above 0".into()),
    }
}

/// What a run came to.
pub enum Failure {
    /// Exit 1.
    Failed(String),
    /// Exit 2.
    Usage(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Parses, runs, and turns what came of it into an exit status.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("no threads: {error}"), 1),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(code) => code,
        Err(Failure::Failed(what)) => fail(&what, 1),
        Err(Failure::Usage(what)) => fail(&what, 2),
    }
}

fn fail(what: &str, code: u8) -> ExitCode {
    eprintln!("visaged-fleet: {}", what.replace('\n', " "));
    ExitCode::from(code)
}

fn log_to_stderr() {
    let filter = std::env::var("VISAGED_FLEET_LOG").unwrap_or_else(|_| "info".into());
    // What rumqttc warns of is said by this program too, or is none: a subscription that was not there to be ended.
    let filter = tracing_subscriber::EnvFilter::new(format!("{filter},rumqttd=off,rumqttc=error,sqlx=warn"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
}

async fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(args) => serve(args).await,
        Command::Simulate(args) => simulate(args).await,
        Command::Audit(args) => audit_store(args).await,
        Command::Token(args) => token(args).await,
        Command::Models(args) => models(args).await,
        Command::Bench(args) => bench::run(args).await,
    }
}

/// Opens the store that the setting names.
///
/// # Errors
/// Exit 2 where it is not understood, else 1.
pub async fn open(database: &str) -> Result<Store, Failure> {
    let place: Place = database.parse().map_err(|error: crate::store::StoreError| Failure::Usage(error.to_string()))?;
    Ok(Store::open(&place).await?)
}

/// A name that can stand in a client id.
fn instance_name(given: Option<String>) -> Result<String, Failure> {
    let name = given.unwrap_or_else(|| gethostname::gethostname().to_string_lossy().into_owned());
    match !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    {
        true => Ok(name),
        false => Err(Failure::Usage(format!("instance {name:?}: want 1 to 64 of A-Z a-z 0-9 . _ - in --instance"))),
    }
}

async fn serve(args: ServeArgs) -> Result<ExitCode, Failure> {
    raise_file_limit();
    let usage = |error: LinkError| Failure::Usage(error.to_string());
    let instance = instance_name(args.instance)?;
    if args.group.is_empty() || args.group.contains(['/', '+', '#']) {
        return Err(Failure::Usage(format!("group {:?}: want a name without / + # in --group", args.group)));
    }
    let (broker, embedded) = match &args.broker.broker {
        Some(url) => (args.broker.address(url).map_err(usage)?, false),
        None => {
            let login = args.broker.login();
            let reach = broker::start(args.embedded_listen, login.as_ref())?;
            eprintln!("visaged-fleet: no --broker named: embedded MQTT 5 broker on {reach}, for trials only");
            (BrokerAddress { host: reach.ip().to_string(), port: reach.port(), login, tls: None }, true)
        }
    };
    let store = open(&args.database.database).await?;
    let tokens = store.tokens().await?.iter().any(|token| token.revoked.is_none());
    let settings = serve::Settings {
        broker,
        embedded,
        alone: args.alone,
        instance,
        group: args.group,
        lease: Duration::from_secs(args.lease_s),
        listen: args.listen,
        silent_after: Duration::from_secs(args.silent_after_s),
        public_url: args.public_url,
        keep: args.keep_days.map(|days| Duration::from_secs(days * 24 * 3600)),
    };
    let server = serve::Server::start(store, settings).await?;
    if !tokens {
        eprintln!(
            "visaged-fleet: no token yet: `visaged-fleet token create --role operate --name NAME` makes one to log in with"
        );
    }
    println!("http://{}/", server.address);
    std::io::stdout().flush()?;
    server.run(signal()).await?;
    Ok(ExitCode::SUCCESS)
}

/// Resolves at SIGINT or SIGTERM.
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

async fn simulate(args: SimulateArgs) -> Result<ExitCode, Failure> {
    let Some(url) = &args.broker.broker else {
        return Err(Failure::Usage("simulate: which broker? give --broker mqtt://HOST".into()));
    };
    let broker = args.broker.address(url).map_err(|error| Failure::Usage(error.to_string()))?;
    let every = |seconds: f64| (!args.calm).then(|| Duration::from_secs_f64(seconds));
    let percent = |percent: u8| if args.calm { 0 } else { percent };
    let settings = simulate::Settings {
        broker,
        devices: args.devices,
        sites: args.sites,
        seed: args.seed,
        event_every: Duration::from_secs_f64(1.0 / args.rate),
        telemetry_every: Duration::from_secs_f64(args.telemetry_s),
        events: args.events,
        length: args.seconds.map(Duration::from_secs),
        command_takes: Duration::from_secs_f64(args.command_s),
        faults: Faults {
            drop_every: every(args.drop_s),
            restart_every: every(args.restart_s),
            clock_every: every(args.clock_s),
            overflow_every: every(args.overflow_s),
            duplicate_percent: percent(args.duplicate_percent),
            late_percent: percent(args.late_percent),
            command_failure_percent: args.command_failure_percent,
            undeclared_loss_permille: args.undeclared_loss_permille,
        },
        ledger: args.ledger,
    };
    raise_file_limit();
    let report = simulate::run(settings, signal()).await?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(ExitCode::SUCCESS)
}

/// Each device is a connection: as many open files as the system lets this process have.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write the one struct whose address they get, and keep it no longer than they run.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

async fn audit_store(args: AuditArgs) -> Result<ExitCode, Failure> {
    let store = open(&args.database.database).await?;
    let settled =
        if args.grace_s == 0 { Micros(i64::MAX) } else { Micros::now().minus(Duration::from_secs(args.grace_s)) };
    let found = audit(&store, settled).await?;
    store.close().await;
    if args.json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        for missing in &found.missing {
            let count = missing.to - missing.from + 1;
            println!(
                "missing: {} boot {} seq {} to {} ({count} events)",
                missing.device, missing.boot, missing.from, missing.to
            );
        }
        println!("{} boots, {} events, {} declared lost", found.boots, found.events, found.declared);
    }
    if found.missing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let count: i64 = found.missing.iter().map(|missing| missing.to - missing.from + 1).sum();
    Err(Failure::Failed(format!(
        "audit: {count} events are missing that no device declared lost; they are listed on stdout"
    )))
}

async fn token(args: TokenArgs) -> Result<ExitCode, Failure> {
    let store = open(&args.database.database).await?;
    let now = Micros::now();
    match args.command {
        TokenCommand::Create { role, name } => {
            if name.trim().is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
                return Err(Failure::Usage(format!("token name {name:?}: want 1 to 100 printable bytes")));
            }
            let secret = new_secret();
            if !store.add_token(&name, role, &secret, "command line", now).await? {
                return Err(Failure::Failed(format!("token {name:?} is there already; choose another name")));
            }
            println!("{secret}");
        }
        TokenCommand::List => {
            for token in store.tokens().await? {
                let state = token.revoked.map_or("valid".into(), |at| format!("revoked {at}"));
                println!("{}\t{}\t{}\t{state}", token.name, token.role.word(), token.created);
            }
        }
        TokenCommand::Revoke { name } => {
            if !store.revoke_token(&name, "command line", now).await? {
                return Err(Failure::Failed(format!("no valid token {name:?}; `token list` shows them")));
            }
        }
    }
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

async fn models(args: ModelsArgs) -> Result<ExitCode, Failure> {
    let store = open(&args.database.database).await?;
    let now = Micros::now();
    match args.command {
        ModelsCommand::Add { archive, signature } => {
            let beside = || PathBuf::from(format!("{}.minisig", archive.display()));
            let signature = signature.unwrap_or_else(beside);
            let unreadable = |path: &std::path::Path, error: std::io::Error| {
                Failure::Failed(format!(
                    "{}: {error}; give what `visaged models pack` and `minisign` wrote",
                    path.display()
                ))
            };
            let bytes = std::fs::read(&archive).map_err(|error| unreadable(&archive, error))?;
            let signed = std::fs::read_to_string(&signature).map_err(|error| unreadable(&signature, error))?;
            let bundle = Bundle::new(&bytes, &signed)
                .map_err(|error| Failure::Failed(format!("{}: {error}", archive.display())))?;
            let name = bundle.name();
            if store.add_bundle(&bundle, "command line", now).await? == Added::Other {
                return Err(Failure::Failed(format!(
                    "another {name} is hosted already; a change wants a higher version"
                )));
            }
            println!("{name}");
        }
        ModelsCommand::List => {
            for BundleRow { name, size, sha256, created, expires, .. } in store.bundles().await? {
                let expires = expires.map_or("-".into(), |at| at.to_string());
                println!("{name}\t{size}\t{sha256}\t{created}\t{expires}");
            }
        }
        ModelsCommand::Remove { name } => match store.remove_bundle(&name, "command line", now).await? {
            Some(true) => {}
            Some(false) => {
                return Err(Failure::Failed(format!(
                    "{name} is still needed by a roll-out or a command; cancel these first"
                )));
            }
            None => return Err(Failure::Failed(format!("no bundle {name:?}; `models list` shows them"))),
        },
    }
    store.close().await;
    Ok(ExitCode::SUCCESS)
}

/// 256 random bits.
pub fn new_secret() -> String {
    let bytes: [u8; 32] = rand::random();
    format!("vft_{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
