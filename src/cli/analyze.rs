//! `visaged analyze PATH...`: pictures, folders, GIFs and clips to one line a picture, in order, on all cores.
//!
//! One thread decodes, one thread a core analyses, this thread writes. Memory is bounded: a picture is decoded only when
//! there is a place for it, and places come free as lines are written.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;
use crossbeam_channel::{Receiver, Sender, bounded};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::Failure;
use super::models::BundleArgs;
use crate::expression::derl::{Derl, DerlModel};
use crate::expression::{Emotion, Probabilities, Reading};
use crate::face::align::align;
use crate::face::detect::{DetectOptions, Detector, DetectorModel};
use crate::face::{AlignedFace, Face};
use crate::frame::RgbImage;
use crate::picture::{self, PictureLimits};

/// Files in a folder that are looked at: those whose name says that they are pictures. A file named on the command line
/// is looked at whatever its name.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "avi"];
/// Decoded pictures that wait or are worked on, for each thread.
const PLACES_PER_THREAD: usize = 4;

/// Find faces in pictures and read their emotions: one line a picture.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  visaged analyze portrait.jpg
  visaged analyze --json holiday/ clip.gif > faces.jsonl
  visaged analyze --crops --json crops/    each picture is one face already cropped

A folder is read with all its sub-folders, sorted by name. A picture that cannot be read is reported on stderr and the
rest goes on; the exit status is then 1.")]
pub struct AnalyzeArgs {
    /// Pictures (JPEG, PNG, WebP), GIFs, MJPEG AVIs, folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Each picture is one face already cropped: no detection, no alignment; any size, read at 64x64
    #[arg(long)]
    crops: bool,
    /// One JSON line a picture
    #[arg(long)]
    json: bool,
    /// Height in pixels of the smallest face to find
    #[arg(long, value_name = "PX", default_value_t = 24, value_parser = clap::value_parser!(u32).range(8..=4096))]
    min_face: u32,
    /// Threads; all cores by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    #[command(flatten)]
    bundles: BundleArgs,
}

/// A decoded picture on its way to an analyst, or why there is none.
struct Job {
    number: u64,
    path: PathBuf,
    frame: u64,
    files_done: u64,
    picture: Result<RgbImage, String>,
}

/// What is to be written for a [`Job`].
struct Done {
    files_done: u64,
    text: Result<String, String>,
}

#[derive(Clone)]
enum Models {
    Crops(DerlModel),
    Whole(DerlModel, DetectorModel),
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure`], exit 1, where a bundle is refused or a picture could not be read.
pub fn run(args: &AnalyzeArgs) -> Result<(), Failure> {
    let derl = args.bundles.derl_model()?;
    let models = if args.crops { Models::Crops(derl) } else { Models::Whole(derl, args.bundles.detector_model()?) };
    let threads = args.threads.map(usize::from).or_else(|| thread::available_parallelism().ok().map(usize::from));
    let threads = threads.unwrap_or(1);
    let (files, mut failed) = list(&args.paths);
    let progress = progress(files.len() as u64);
    let places = PLACES_PER_THREAD * threads;
    // A token is taken for each picture decoded and given back when its line is written.
    let (give_back, tokens) = bounded::<()>(places);
    for _ in 0..places {
        let _ = give_back.send(());
    }
    let (jobs_in, jobs) = bounded::<Job>(places);
    let (done_in, done) = bounded::<(u64, Done)>(places);
    let written = thread::scope(|scope| {
        let spawn = |name: &str| thread::Builder::new().name(name.into());
        let reader = spawn("decode").spawn_scoped(scope, move || decode(&files, &tokens, &jobs_in));
        let mut spawned = reader.map(drop);
        for _ in 0..threads {
            let (jobs, done, models) = (jobs.clone(), done_in.clone(), models.clone());
            let analyst = spawn("analyse").spawn_scoped(scope, move || analyse(args, &models, &jobs, &done));
            spawned = spawned.and(analyst.map(drop));
        }
        drop((jobs, done_in));
        spawned.and_then(|()| write(done, give_back, &progress))
    });
    progress.finish_and_clear();
    match written {
        Ok(errors) => failed |= errors,
        // Whoever read our lines has enough of them.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(e) => return Err(Failure::failed(e)),
    }
    if failed { Err(Failure::reported()) } else { Ok(()) }
}

fn progress(files: u64) -> ProgressBar {
    // Drawn only on a terminal, and not over lines that go to the same one.
    let target = if io::stdout().is_terminal() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} files  {elapsed} (about {eta} left)");
    ProgressBar::with_draw_target(Some(files), target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Every file to look at, in order; and whether anything was wrong with a path.
fn list(paths: &[PathBuf]) -> (Vec<PathBuf>, bool) {
    let (mut files, mut failed) = (Vec::new(), false);
    for path in paths {
        let before = files.len();
        if !path.is_dir() {
            files.push(path.clone());
        } else if let Err((place, error)) = walk(path, &mut files) {
            complain(&format!("{}: {error}", place.display()));
            failed = true;
        } else if files.len() == before {
            complain(&format!(
                "{}: no pictures in this folder ({} are looked for)",
                path.display(),
                EXTENSIONS.join(", ")
            ));
            failed = true;
        }
    }
    (files, failed)
}

/// Files and sub-folders sorted by name; links to folders are not followed, so that no circle is walked.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), (PathBuf, io::Error)> {
    let at = |error| (folder.to_owned(), error);
    let mut entries = std::fs::read_dir(folder).map_err(at)?.collect::<Result<Vec<_>, _>>().map_err(at)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if entry.file_type().map_err(at)?.is_dir() {
            walk(&path, files)?;
        } else if path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known))) {
            files.push(path);
        }
    }
    Ok(())
}

fn complain(message: &str) {
    eprintln!("visaged: {message}");
}

fn decode(files: &[PathBuf], tokens: &Receiver<()>, jobs: &Sender<Job>) {
    let mut number = 0;
    for (i, path) in files.iter().enumerate() {
        // Counts as done when its last picture is; its first one says that those before it are.
        let files_done = i as u64;
        let mut send = |frame: u64, picture: Result<RgbImage, String>| {
            let job = Job { number, path: path.clone(), frame, files_done, picture };
            number += 1;
            jobs.send(job).is_ok() && tokens.recv().is_ok()
        };
        let frames = match picture::frames(path, PictureLimits::default()) {
            Ok(frames) => frames,
            Err(error) if !send(0, Err(error.to_string())) => return,
            Err(_) => continue,
        };
        let mut next = 0;
        for item in frames {
            let sent = match item {
                Ok((frame, picture)) => {
                    next = frame + 1;
                    send(frame, Ok(picture))
                }
                Err(error) => {
                    next += 1;
                    send(next - 1, Err(error.to_string()))
                }
            };
            if !sent {
                return;
            }
        }
    }
}

fn analyse(args: &AnalyzeArgs, models: &Models, jobs: &Receiver<Job>, done: &Sender<(u64, Done)>) {
    let analyst = Analyst::new(args, models);
    let mut analyst = match analyst {
        Ok(analyst) => Ok(analyst),
        Err(failure) => Err(failure.to_string()),
    };
    for job in jobs {
        let Job { number, path, frame, files_done, picture } = job;
        let text = match (&mut analyst, picture) {
            (Ok(analyst), Ok(picture)) => analyst
                .look(&picture)
                .map(|faces| if args.json { json(&path, frame, &faces) } else { human(&path, frame, &faces) })
                .map_err(|error| format!("{}: frame {frame}: {error}", path.display())),
            (Err(error), _) => Err(error.clone()),
            (_, Err(error)) => Err(error),
        };
        if done.send((number, Done { files_done, text })).is_err() {
            return;
        }
    }
}

/// Writes lines in the order of their jobs; says whether there were errors. Owns its channels, so that the other threads
/// end when it does.
fn write(done: Receiver<(u64, Done)>, give_back: Sender<()>, progress: &ProgressBar) -> io::Result<bool> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    let (mut waiting, mut next, mut failed) = (BTreeMap::new(), 0, false);
    for (number, line) in done {
        waiting.insert(number, line);
        while let Some(line) = waiting.remove(&next) {
            next += 1;
            progress.set_position(line.files_done);
            match line.text {
                Ok(text) => stdout.write_all(text.as_bytes())?,
                Err(message) => {
                    failed = true;
                    progress.suspend(|| complain(&message));
                }
            }
            // Fails only where the reader is through.
            let _ = give_back.try_send(());
        }
        // Lines stream: whoever reads them sees each as soon as it is there.
        stdout.flush()?;
    }
    Ok(failed)
}

/// One thread's networks and buffers.
struct Analyst {
    detector: Option<Detector>,
    derl: Derl,
    faces: Vec<Face>,
    aligned: AlignedFace,
    reading: Reading,
}

/// A face and what was read from it.
struct Found {
    face: Option<Face>,
    emotion: Emotion,
    probabilities: Probabilities,
    neutrality: f32,
}

impl Analyst {
    fn new(args: &AnalyzeArgs, models: &Models) -> Result<Self, Failure> {
        let (derl, detector) = match models {
            Models::Crops(derl) => (derl, None),
            Models::Whole(derl, detector) => {
                let options = DetectOptions { min_face_px: args.min_face, ..DetectOptions::still(detector) };
                (derl, Some(Detector::new(detector, options)))
            }
        };
        Ok(Self {
            detector,
            derl: Derl::new(derl).map_err(Failure::failed)?,
            faces: Vec::new(),
            aligned: AlignedFace::default(),
            reading: Reading::default(),
        })
    }

    fn look(&mut self, picture: &RgbImage) -> Result<Vec<Found>, String> {
        let Some(detector) = &mut self.detector else {
            self.derl.read_crop(picture, &mut self.reading).map_err(|e| e.to_string())?;
            return Ok(vec![self.found(None)]);
        };
        detector.detect(picture, &mut self.faces).map_err(|e| e.to_string())?;
        let mut found = Vec::with_capacity(self.faces.len());
        for i in 0..self.faces.len() {
            let face = self.faces[i];
            align(picture, &face.landmarks, &mut self.aligned).map_err(|e| e.to_string())?;
            self.derl.read(&self.aligned, &mut self.reading).map_err(|e| e.to_string())?;
            found.push(self.found(Some(face)));
        }
        Ok(found)
    }

    fn found(&self, face: Option<Face>) -> Found {
        let probabilities = self.reading.probabilities;
        Found { face, emotion: probabilities.top(), probabilities, neutrality: self.reading.neutrality }
    }
}

#[derive(Serialize)]
struct PictureLine<'a> {
    path: std::borrow::Cow<'a, str>,
    frame: u64,
    faces: Vec<FaceEntry>,
}

#[derive(Serialize)]
struct FaceEntry {
    #[serde(rename = "box")]
    rect: Option<[f64; 4]>,
    landmarks: Option<[[f64; 2]; 5]>,
    score: Option<f64>,
    emotion: &'static str,
    probabilities: ByName,
    neutrality: f64,
}

/// Probabilities under their FER+ names.
struct ByName(Probabilities);

impl Serialize for ByName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(8))?;
        for (emotion, p) in Emotion::ALL.iter().zip(self.0.0) {
            map.serialize_entry(emotion.name(), &rounded(p, 1e5))?;
        }
        map.end()
    }
}

/// Rounded to `1 / steps`, so that a line shows no digits that mean nothing.
fn rounded(value: f32, steps: f64) -> f64 {
    (f64::from(value) * steps).round() / steps
}

fn json(path: &Path, frame: u64, faces: &[Found]) -> String {
    let px = |v: f32| rounded(v, 100.0);
    let entry = |found: &Found| FaceEntry {
        rect: found.face.map(|f| [px(f.rect.x), px(f.rect.y), px(f.rect.width), px(f.rect.height)]),
        landmarks: found.face.map(|f| f.landmarks.map(|p| [px(p.x), px(p.y)])),
        score: found.face.map(|f| rounded(f.score, 1e4)),
        emotion: found.emotion.name(),
        probabilities: ByName(found.probabilities),
        neutrality: rounded(found.neutrality, 1e5),
    };
    let line = PictureLine { path: path.to_string_lossy(), frame, faces: faces.iter().map(entry).collect() };
    // Numbers, names and a string: nothing in it can fail to serialise.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

fn human(path: &Path, frame: u64, faces: &[Found]) -> String {
    let place = if frame == 0 { path.display().to_string() } else { format!("{}, frame {frame}", path.display()) };
    if faces.is_empty() {
        return format!("{place}: no face\n");
    }
    let face = |found: &Found| {
        let rect = found
            .face
            .map(|f| format!("face at {:.0},{:.0}, {:.0}x{:.0} px: ", f.rect.x, f.rect.y, f.rect.width, f.rect.height));
        let percent = 100.0 * found.probabilities.0[found.emotion as usize];
        let (rect, name, neutrality) = (rect.unwrap_or_default(), found.emotion.name(), found.neutrality);
        format!("{place}: {rect}{name} ({percent:.0} %), neutrality {neutrality:.2}\n")
    };
    faces.iter().map(face).collect()
}
