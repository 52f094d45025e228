//! The frames of an MJPEG AVI, read one after the other straight into the caller's buffer.
//!
//! Invariants: no length in the file is believed before it is compared with what is left of the file; memory does not
//! grow with the file (no index is kept: chunks are walked in order, over the further `RIFF` parts of OpenDML too);
//! every call either moves forward in the file or ends.

use std::io::{self, Read, Seek, SeekFrom};
use std::time::Duration;

/// A longer frame is not a picture from a camera.
const MAX_FRAME_BYTES: u32 = 64 << 20;
/// Header chunks that are read are a few dozen bytes; longer ones are cut.
const MAX_HEADER_BYTES: u32 = 1024;
const DEFAULT_FRAME_TIME: Duration = Duration::from_millis(40);

/// An MJPEG AVI, open at a frame.
#[derive(Debug)]
pub struct AviReader<R> {
    reader: R,
    /// Where the next chunk header is read.
    at: u64,
    /// Where the first chunk behind the headers stands.
    first: u64,
    end: u64,
    stream: VideoStream,
}

/// What the headers say of the stream that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct VideoStream {
    number: u8,
    width_px: u32,
    height_px: u32,
    frame_time: Duration,
}

/// Why an AVI cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AviError {
    /// Reading failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No `RIFF` header of type `AVI `.
    #[error("it is not an AVI file")]
    NotAvi,
    /// A video stream of another coding, named by its four characters.
    #[error("its video is coded as {0}, only MJPG is read; convert it with `ffmpeg -i IN -c:v mjpeg OUT.avi`")]
    NotMjpeg(String),
    /// Only sound, or headers damaged.
    #[error("there is no video stream in it")]
    NoVideo,
    /// A frame is said to be longer than any picture.
    #[error("a frame of {0} bytes is not read")]
    FrameTooLong(u32),
}

struct Chunk {
    id: [u8; 4],
    /// Where its contents begin.
    data: u64,
    /// Their length, as said; may reach over the end of the file.
    length: u32,
}

impl<R: Read + Seek> AviReader<R> {
    /// Reads the headers.
    ///
    /// # Errors
    /// [`AviError`].
    pub fn open(mut reader: R) -> Result<Self, AviError> {
        let end = reader.seek(SeekFrom::End(0))?;
        let none = VideoStream { number: 0, width_px: 0, height_px: 0, frame_time: DEFAULT_FRAME_TIME };
        let mut avi = Self { reader, at: 0, first: 0, end, stream: none };
        let riff = avi.chunk()?.filter(|chunk| chunk.id == *b"RIFF").ok_or(AviError::NotAvi)?;
        if avi.list_type(&riff)? != *b"AVI " {
            return Err(AviError::NotAvi);
        }
        avi.read_headers()?;
        avi.first = avi.at;
        Ok(avi)
    }

    /// Width that the headers give, in pixels.
    pub fn width_px(&self) -> u32 {
        self.stream.width_px
    }

    /// Height that the headers give, in pixels.
    pub fn height_px(&self) -> u32 {
        self.stream.height_px
    }

    /// Time that each frame is shown.
    pub fn frame_time(&self) -> Duration {
        self.stream.frame_time
    }

    /// Reads the next JPEG picture into `data`; false where there is none left. Empty chunks, which stand for "as
    /// before", are passed over; a frame that the file ends within counts as the end.
    ///
    /// # Errors
    /// [`AviError`].
    pub fn next_frame(&mut self, data: &mut Vec<u8>) -> Result<bool, AviError> {
        data.clear();
        while let Some(chunk) = self.chunk()? {
            if self.enter(&chunk)? {
                continue;
            }
            self.skip(&chunk);
            if chunk.length == 0 || !self.is_frame(chunk.id) {
                continue;
            }
            if chunk.data + u64::from(chunk.length) > self.end {
                break;
            }
            if chunk.length > MAX_FRAME_BYTES {
                return Err(AviError::FrameTooLong(chunk.length));
            }
            self.read_into(&chunk, chunk.length, data)?;
            return Ok(true);
        }
        self.finish();
        Ok(false)
    }

    /// Goes back to the first frame.
    pub fn rewind(&mut self) {
        self.at = self.first;
    }

    /// Goes behind the last frame.
    pub fn finish(&mut self) {
        self.at = self.end;
    }

    /// `NNdc` or `NNdb`, where NN is the number of the stream.
    fn is_frame(&self, [tens, ones, d, kind]: [u8; 4]) -> bool {
        let number = self.stream.number;
        [tens, ones] == [b'0' + number / 10, b'0' + number % 10] && d == b'd' && matches!(kind, b'c' | b'b')
    }

    /// Walks the headers up to the list of frames.
    fn read_headers(&mut self) -> Result<(), AviError> {
        let (mut number, mut header, mut found, mut other) = (0u8, None, None, None);
        while let Some(chunk) = self.chunk()? {
            if chunk.id == *b"LIST" && self.list_type(&chunk)? == *b"movi" {
                self.at = chunk.data + 4;
                self.stream = match (found, other) {
                    (Some(stream), _) => stream,
                    (None, Some(coding)) => return Err(AviError::NotMjpeg(coding)),
                    (None, None) => return Err(AviError::NoVideo),
                };
                return Ok(());
            }
            if self.enter(&chunk)? {
                continue;
            }
            self.skip(&chunk);
            match &chunk.id {
                b"strh" => header = StreamHeader::parse(&self.head_of(&chunk)?),
                b"strf" => {
                    if let (Some(StreamHeader { frame_time }), None) = (header.take(), &found) {
                        match bitmap_header(&self.head_of(&chunk)?) {
                            Some((size, coding)) if coding.eq_ignore_ascii_case(b"MJPG") => {
                                let (width_px, height_px) = size;
                                found = Some(VideoStream { number, width_px, height_px, frame_time });
                            }
                            Some((_, coding)) => other = Some(coding.escape_ascii().to_string()),
                            None => {}
                        }
                    }
                    // Frame chunks name their stream with two digits.
                    number = (number + 1).min(99);
                }
                _ => {}
            }
        }
        Err(other.map_or(AviError::NoVideo, AviError::NotMjpeg))
    }

    /// The chunk at `self.at`, which stays there; `None` at the end of the file.
    fn chunk(&mut self) -> Result<Option<Chunk>, AviError> {
        let data = self.at.saturating_add(8);
        if data > self.end {
            return Ok(None);
        }
        let mut header = [0; 8];
        self.reader.seek(SeekFrom::Start(self.at))?;
        self.reader.read_exact(&mut header)?;
        let [a, b, c, d, length @ ..] = header;
        Ok(Some(Chunk { id: [a, b, c, d], data, length: u32::from_le_bytes(length) }))
    }

    /// Steps into a list whose chunks are of interest; says whether it was one.
    fn enter(&mut self, chunk: &Chunk) -> Result<bool, AviError> {
        if chunk.id != *b"LIST" && chunk.id != *b"RIFF" {
            return Ok(false);
        }
        let inside = matches!(&self.list_type(chunk)?, b"AVI " | b"AVIX" | b"hdrl" | b"strl" | b"movi" | b"rec ");
        if inside {
            self.at = chunk.data + 4;
        }
        Ok(inside)
    }

    fn list_type(&mut self, chunk: &Chunk) -> Result<[u8; 4], AviError> {
        let mut kind = [0; 4];
        if chunk.data + 4 <= self.end {
            self.reader.seek(SeekFrom::Start(chunk.data))?;
            self.reader.read_exact(&mut kind)?;
        }
        Ok(kind)
    }

    /// Steps over a chunk; chunks begin at even places.
    fn skip(&mut self, chunk: &Chunk) {
        self.at = chunk.data + u64::from(chunk.length) + u64::from(chunk.length % 2);
    }

    fn head_of(&mut self, chunk: &Chunk) -> Result<Vec<u8>, AviError> {
        let mut head = Vec::new();
        self.read_into(chunk, chunk.length.min(MAX_HEADER_BYTES), &mut head)?;
        Ok(head)
    }

    fn read_into(&mut self, chunk: &Chunk, length: u32, data: &mut Vec<u8>) -> Result<(), AviError> {
        self.reader.seek(SeekFrom::Start(chunk.data))?;
        self.reader.by_ref().take(length.into()).read_to_end(data)?;
        Ok(())
    }
}

/// `AVISTREAMHEADER` of a video stream.
struct StreamHeader {
    frame_time: Duration,
}

impl StreamHeader {
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..4)? != b"vids" {
            return None;
        }
        let (scale, rate) = (u32_at(bytes, 20)?, u32_at(bytes, 24)?);
        let seconds = f64::from(scale) / f64::from(rate);
        // Beyond these the header is nonsense; one frame in ten seconds to 1000 in one.
        let sane = (0.001..=10.0).contains(&seconds);
        Some(Self { frame_time: if sane { Duration::from_secs_f64(seconds) } else { DEFAULT_FRAME_TIME } })
    }
}

/// Size and coding in a `BITMAPINFOHEADER`; the height is negative where rows run from the top.
fn bitmap_header(bytes: &[u8]) -> Option<((u32, u32), [u8; 4])> {
    let (width, height) = (u32_at(bytes, 4)?, u32_at(bytes, 8)?.cast_signed().unsigned_abs());
    Some(((width, height), bytes.get(16..20)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
