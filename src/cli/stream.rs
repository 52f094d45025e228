//! Pictures, folders, GIFs and clips to one line a picture, in order, on all cores: what `analyze` and `embed` share.
//!
//! One thread decodes, one thread a core looks, this thread writes. Memory is bounded: a picture is decoded only when
//! there is a place for it, and places come free as lines are written.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;

use clap::Args;
use crossbeam_channel::{Receiver, Sender, bounded};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Failure;
use crate::frame::RgbImage;
use crate::picture::{self, PictureLimits};

/// Files in a folder that are looked at: those whose name says that they are pictures. A file named on the command line
/// is looked at whatever its name.
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "avi"];
/// Decoded pictures that wait or are worked on, for each thread.
const PLACES_PER_THREAD: usize = 4;

/// Looks at pictures on a thread of its own.
pub(super) trait Worker {
    /// What it hands to the writing thread for a picture.
    type Seen: Send;

    /// Looks at one picture; an error is told with the picture's name.
    fn look(&mut self, path: &Path, frame: u64, picture: &RgbImage) -> Result<Self::Seen, String>;
}

/// A decoded picture on its way to a worker, or why there is none.
struct Job {
    number: u64,
    path: PathBuf,
    frame: u64,
    files_done: u64,
    picture: Result<RgbImage, String>,
}

/// What is to be written for a [`Job`].
struct Done<S> {
    files_done: u64,
    seen: Result<S, String>,
}

/// What `analyze` and `embed` are told alike: which pictures, how they are looked at, what is written.
#[derive(Debug, Args)]
pub(super) struct PictureArgs {
    /// Pictures (JPEG, PNG, WebP), GIFs, MJPEG AVIs, folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// One JSON line a picture
    #[arg(long)]
    pub(super) json: bool,
    /// Height in pixels of the smallest face to find
    #[arg(long, value_name = "PX", default_value_t = 24, value_parser = clap::value_parser!(u32).range(8..=4096))]
    pub(super) min_face: u32,
    /// Threads; all cores by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

/// Looks at every picture with workers that `make` makes, one a thread, and writes what `text` says of each, in order.
///
/// # Errors
/// [`Failure`], exit 1, where a picture could not be read or looked at: the others have been by then.
pub(super) fn run<W: Worker>(
    pictures: &PictureArgs,
    make: impl Fn() -> Result<W, Failure> + Sync,
    text: impl FnMut(W::Seen) -> String,
) -> Result<(), Failure> {
    let threads = pictures.threads.map(usize::from).or_else(|| thread::available_parallelism().ok().map(usize::from));
    let threads = threads.unwrap_or(1);
    let (files, mut failed) = list(&pictures.paths);
    let progress = progress(files.len() as u64);
    let places = PLACES_PER_THREAD * threads;
    // A token is taken for each picture decoded and given back when its line is written.
    let (give_back, tokens) = bounded::<()>(places);
    for _ in 0..places {
        let _ = give_back.send(());
    }
    let (jobs_in, jobs) = bounded::<Job>(places);
    let (done_in, done) = bounded::<(u64, Done<W::Seen>)>(places);
    let make = &make;
    let written = thread::scope(|scope| {
        let spawn = |name: &str| thread::Builder::new().name(name.into());
        let reader = spawn("decode").spawn_scoped(scope, move || decode(&files, &tokens, &jobs_in));
        let mut spawned = reader.map(drop);
        for _ in 0..threads {
            let (jobs, done) = (jobs.clone(), done_in.clone());
            let worker = spawn("look").spawn_scoped(scope, move || work(make, &jobs, &done));
            spawned = spawned.and(worker.map(drop));
        }
        drop((jobs, done_in));
        spawned.and_then(|()| write(done, give_back, &progress, text))
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

fn work<W: Worker>(make: &impl Fn() -> Result<W, Failure>, jobs: &Receiver<Job>, done: &Sender<(u64, Done<W::Seen>)>) {
    let mut worker = make().map_err(|failure| failure.to_string());
    for job in jobs {
        let Job { number, path, frame, files_done, picture } = job;
        let seen = match (&mut worker, picture) {
            (Ok(worker), Ok(picture)) => worker
                .look(&path, frame, &picture)
                .map_err(|error| format!("{}: frame {frame}: {error}", path.display())),
            (Err(error), _) => Err(error.clone()),
            (_, Err(error)) => Err(error),
        };
        if done.send((number, Done { files_done, seen })).is_err() {
            return;
        }
    }
}

/// Writes lines in the order of their jobs; says whether there were errors. Owns its channels, so that the other threads
/// end when it does.
fn write<S>(
    done: Receiver<(u64, Done<S>)>,
    give_back: Sender<()>,
    progress: &ProgressBar,
    mut text: impl FnMut(S) -> String,
) -> io::Result<bool> {
    let mut stdout = BufWriter::new(io::stdout().lock());
    let (mut waiting, mut next, mut failed) = (BTreeMap::new(), 0, false);
    for (number, line) in done {
        waiting.insert(number, line);
        while let Some(line) = waiting.remove(&next) {
            next += 1;
            progress.set_position(line.files_done);
            match line.seen {
                Ok(seen) => stdout.write_all(text(seen).as_bytes())?,
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

/// Rounded to `1 / steps`, so that a line shows no digits that mean nothing.
pub(super) fn rounded(value: f32, steps: f64) -> f64 {
    (f64::from(value) * steps).round() / steps
}

/// A picture's name for people.
pub(super) fn place(path: &Path, frame: u64) -> String {
    if frame == 0 { path.display().to_string() } else { format!("{}, frame {frame}", path.display()) }
}
