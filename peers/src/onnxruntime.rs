//! ONNX Runtime through its C interface: a table of functions whose places never change, of which a few are used.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use super::{Missing, Peer, PeerError, Tensor, check_length, locate};

const ENGINE: &str = "ONNX Runtime";
/// The oldest version of the interface that has all that is used here.
const API_VERSION: u32 = 17;
const FLOAT: c_int = 1;
const LOG_ERRORS: c_int = 3;

/// How a graph is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads for one run, at least 1.
    pub threads: usize,
    /// Keeps it from adding the product of a u8 and an s8 to its neighbour's in 16 bits, where the sum may saturate. Only x86-64 without
    /// VNNI is concerned. Off is its default.
    pub exact: bool,
    /// Whether pairs of QuantizeLinear and DequantizeLinear are turned into integer kernels; off, it computes as the graph is written.
    pub optimised: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: 1, exact: true, optimised: true }
    }
}

/// An object of the library's; which kind is in the name of whatever holds it.
type Object = *mut c_void;
/// Null, or an error that has to be released.
type Status = *mut c_void;

#[repr(C)]
struct ApiBase {
    get_api: unsafe extern "C" fn(u32) -> *const *const c_void,
    get_version: unsafe extern "C" fn() -> *const c_char,
}

/// Declares the functions that are used with their places in the table.
macro_rules! table {
    ($($name:ident = $place:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        struct Api {
            version: String,
            environment: Object,
            memory: Object,
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Api {
            /// # Safety
            /// `table` is the table of functions of a library that stays open.
            unsafe fn read(table: *const *const c_void, version: String) -> Self {
                Self {
                    version,
                    environment: null_mut(),
                    memory: null_mut(),
                    // SAFETY: the table holds at least API_VERSION's functions, each at its place with its signature.
                    $($name: unsafe { std::mem::transmute::<*const c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(*table.add($place)) },)*
                }
            }
        }
    };
}

table! {
    error_message = 2: fn(Status) -> *const c_char;
    create_environment = 3: fn(c_int, *const c_char, *mut Object) -> Status;
    create_session = 8: fn(Object, *const c_void, usize, Object, *mut Object) -> Status;
    run = 9: fn(Object, *const c_void, *const *const c_char, *const Object, usize, *const *const c_char, usize, *mut Object) -> Status;
    create_options = 10: fn(*mut Object) -> Status;
    set_optimisation = 23: fn(Object, c_int) -> Status;
    set_threads = 24: fn(Object, c_int) -> Status;
    input_count = 30: fn(Object, *mut usize) -> Status;
    output_count = 31: fn(Object, *mut usize) -> Status;
    input_name = 36: fn(Object, usize, Object, *mut *mut c_char) -> Status;
    output_name = 37: fn(Object, usize, Object, *mut *mut c_char) -> Status;
    tensor_over = 49: fn(Object, *mut c_void, usize, *const i64, usize, c_int, *mut Object) -> Status;
    tensor_data = 51: fn(Object, *mut *mut c_void) -> Status;
    dimension_count = 61: fn(Object, *mut usize) -> Status;
    dimensions = 62: fn(Object, *mut i64, usize) -> Status;
    shape_info = 65: fn(Object, *mut Object) -> Status;
    create_memory_info = 69: fn(c_int, c_int, *mut Object) -> Status;
    free = 76: fn(Object, *mut c_void) -> Status;
    default_allocator = 78: fn(*mut Object) -> Status;
    release_status = 93: fn(Status);
    release_session = 95: fn(Object);
    release_value = 96: fn(Object);
    release_shape_info = 99: fn(Object);
    release_options = 100: fn(Object);
    set_option = 130: fn(Object, *const c_char, *const c_char) -> Status;
}

// SAFETY: the table is never written, and the environment and the memory description may be used from any thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

impl Api {
    fn get() -> Result<&'static Self, PeerError> {
        static API: OnceLock<Result<Api, String>> = OnceLock::new();
        let path = locate("libonnxruntime.so", "VISAGED_ORT_LIB", "onnxruntime/capi", "libonnxruntime.so")?;
        let api = API.get_or_init(|| Self::open(&path).map_err(|error| error.to_string()));
        api.as_ref().map_err(|message| PeerError::Load { path, message: message.clone() })
    }

    fn open(path: &std::path::Path) -> Result<Self, Box<dyn std::error::Error>> {
        // SAFETY: its initialisers are those of a library that runs in any Python process.
        let library = unsafe { libloading::Library::new(path) }?;
        // Never closed: its threads and its exit handlers outlive every network.
        let library = Box::leak(Box::new(library));
        // SAFETY: the one exported function, as its header declares it.
        let base = unsafe { library.get::<unsafe extern "C" fn() -> *const ApiBase>(b"OrtGetApiBase\0") }?;
        // SAFETY: the table of tables lives as long as the library.
        let (table, version) = unsafe {
            let base = &*base();
            ((base.get_api)(API_VERSION), CStr::from_ptr((base.get_version)()).to_string_lossy().into_owned())
        };
        if table.is_null() {
            return Err(format!("version {version} has no interface {API_VERSION}").into());
        }
        // SAFETY: the library stays open, see above.
        let mut api = unsafe { Self::read(table, version) };
        let (mut environment, mut memory) = (null_mut(), null_mut());
        // SAFETY: as the header declares them: log level, name, place for the object; kind of allocator and of memory.
        unsafe {
            api.check("start", (api.create_environment)(LOG_ERRORS, c"visaged".as_ptr(), &mut environment))?;
            api.check("describe memory", (api.create_memory_info)(0, 0, &mut memory))?;
        }
        (api.environment, api.memory) = (environment, memory);
        Ok(api)
    }

    fn check(&self, step: &'static str, status: Status) -> Result<(), PeerError> {
        if status.is_null() {
            return Ok(());
        }
        // SAFETY: not null, so an error with a message; released once.
        let message = unsafe {
            let message = CStr::from_ptr((self.error_message)(status)).to_string_lossy().into_owned();
            (self.release_status)(status);
            message
        };
        Err(PeerError::Failed { engine: ENGINE, step, message })
    }
}

/// The version of the library.
///
/// # Errors
/// [`PeerError`] where there is none or it cannot be opened.
pub fn version() -> Result<&'static str, PeerError> {
    Ok(&Api::get()?.version)
}

/// Whether there is a library, without opening it.
///
/// # Errors
/// [`Missing`] where there is none.
pub fn find() -> Result<(), Missing> {
    locate("libonnxruntime.so", "VISAGED_ORT_LIB", "onnxruntime/capi", "libonnxruntime.so").map(|_| ())
}

/// A value of the library's over memory of ours.
struct Bound {
    tensor: Tensor,
    name: CString,
    data: Box<[f32]>,
    value: Object,
}

/// A graph in ONNX Runtime.
pub struct OnnxRuntime {
    api: &'static Api,
    session: Object,
    inputs: Vec<Bound>,
    outputs: Vec<Bound>,
    input_tensors: Vec<Tensor>,
    output_tensors: Vec<Tensor>,
}

impl std::fmt::Debug for OnnxRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxRuntime")
            .field("inputs", &self.input_tensors)
            .field("outputs", &self.output_tensors)
            .finish()
    }
}

impl OnnxRuntime {
    /// Reads the ONNX file `model` and makes it ready for `input_shapes` (one a graph input, in order). All tensors at its edges are float.
    ///
    /// # Errors
    /// [`PeerError`] where the library is missing or refuses the graph.
    pub fn prepare(model: &[u8], input_shapes: &[&[usize]], options: Options) -> Result<Self, PeerError> {
        let api = Api::get()?;
        let session = Self::session(api, model, options)?;
        let mut peer =
            Self { api, session, inputs: vec![], outputs: vec![], input_tensors: vec![], output_tensors: vec![] };
        let names = peer.names(api.input_count, api.input_name)?;
        if names.len() != input_shapes.len() {
            let message = format!("the graph has {} inputs, {} shapes were given", names.len(), input_shapes.len());
            return Err(PeerError::Failed { engine: ENGINE, step: "bind inputs", message });
        }
        for (name, shape) in names.into_iter().zip(input_shapes) {
            let bound = bind(api, name, shape)?;
            peer.inputs.push(bound);
        }
        for (name, shape) in peer.output_shapes()? {
            let bound = bind(api, name, &shape)?;
            peer.outputs.push(bound);
        }
        peer.input_tensors = peer.inputs.iter().map(|bound| bound.tensor.clone()).collect();
        peer.output_tensors = peer.outputs.iter().map(|bound| bound.tensor.clone()).collect();
        Ok(peer)
    }

    fn session(api: &Api, model: &[u8], options: Options) -> Result<Object, PeerError> {
        let (mut settings, mut session) = (null_mut(), null_mut());
        let threads = c_int::try_from(options.threads).unwrap_or(c_int::MAX);
        let level = if options.optimised { 99 } else { 0 };
        // SAFETY: as the header declares them; the settings are released once, whatever comes of the session.
        unsafe {
            api.check("create options", (api.create_options)(&mut settings))?;
            let made = (|| {
                api.check("set threads", (api.set_threads)(settings, threads))?;
                api.check("set optimisation", (api.set_optimisation)(settings, level))?;
                let set = |name: &CStr, value: &CStr| {
                    api.check("set an option", (api.set_option)(settings, name.as_ptr(), value.as_ptr()))
                };
                if options.exact {
                    set(c"session.x64quantprecision", c"1")?;
                }
                // A waiting thread must not burn the time that another engine is measured in.
                set(c"session.intra_op.allow_spinning", c"0")?;
                let data = model.as_ptr().cast();
                api.check(
                    "read the graph",
                    (api.create_session)(api.environment, data, model.len(), settings, &mut session),
                )
            })();
            (api.release_options)(settings);
            made.map(|()| session)
        }
    }

    #[allow(clippy::type_complexity, reason = "two functions of the table, as the header declares them")]
    fn names(
        &self,
        count: unsafe extern "C" fn(Object, *mut usize) -> Status,
        name: unsafe extern "C" fn(Object, usize, Object, *mut *mut c_char) -> Status,
    ) -> Result<Vec<CString>, PeerError> {
        let (mut total, mut allocator) = (0, null_mut());
        // SAFETY: as the header declares them; each name is copied and given back to the allocator that it came from.
        unsafe {
            self.api.check("count", count(self.session, &mut total))?;
            self.api.check("get the allocator", (self.api.default_allocator)(&mut allocator))?;
            let mut names = Vec::with_capacity(total);
            for index in 0..total {
                let mut text = null_mut();
                self.api.check("get a name", name(self.session, index, allocator, &mut text))?;
                names.push(CStr::from_ptr(text).to_owned());
                self.api.check("free a name", (self.api.free)(allocator, text.cast()))?;
            }
            Ok(names)
        }
    }

    /// Runs once, because a shape may follow from the input's only then.
    fn output_shapes(&mut self) -> Result<Vec<(CString, Vec<usize>)>, PeerError> {
        let names = self.names(self.api.output_count, self.api.output_name)?;
        let mut values = vec![null_mut(); names.len()];
        let pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        self.call(&pointers, &mut values)?;
        let mut shapes = Vec::with_capacity(names.len());
        for (name, value) in names.into_iter().zip(values) {
            shapes.push((name, shape_of(self.api, value)?));
            // SAFETY: made by the run above, used nowhere else.
            unsafe { (self.api.release_value)(value) };
        }
        Ok(shapes)
    }

    fn call(&self, names: &[*const c_char], values: &mut [Object]) -> Result<(), PeerError> {
        let inputs: Vec<_> = self.inputs.iter().map(|bound| bound.value).collect();
        let input_names: Vec<_> = self.inputs.iter().map(|bound| bound.name.as_ptr()).collect();
        // SAFETY: as many names as values on both sides; every value is a tensor of the library's or, for outputs, null.
        let status = unsafe {
            (self.api.run)(
                self.session,
                null(),
                input_names.as_ptr(),
                inputs.as_ptr(),
                inputs.len(),
                names.as_ptr(),
                names.len(),
                values.as_mut_ptr(),
            )
        };
        self.api.check("run", status)
    }
}

fn bind(api: &'static Api, name: CString, shape: &[usize]) -> Result<Bound, PeerError> {
    let tensor = Tensor { name: name.to_string_lossy().into_owned(), shape: shape.to_vec() };
    let mut data = vec![0.0_f32; tensor.len()].into_boxed_slice();
    let dimensions: Vec<_> = shape.iter().map(|n| i64::try_from(*n).unwrap_or(i64::MAX)).collect();
    let (mut value, bytes) = (null_mut(), std::mem::size_of_val(&*data));
    // SAFETY: the memory is as large as said and is kept, in its box, as long as the value.
    let status = unsafe {
        let data = data.as_mut_ptr().cast();
        (api.tensor_over)(api.memory, data, bytes, dimensions.as_ptr(), dimensions.len(), FLOAT, &mut value)
    };
    api.check("bind a tensor", status)?;
    Ok(Bound { tensor, name, data, value })
}

fn shape_of(api: &Api, value: Object) -> Result<Vec<usize>, PeerError> {
    let (mut info, mut rank) = (null_mut(), 0);
    // SAFETY: as the header declares them; the description is released once.
    unsafe {
        api.check("get a shape", (api.shape_info)(value, &mut info))?;
        let shape = (|| {
            api.check("get a rank", (api.dimension_count)(info, &mut rank))?;
            let mut dimensions = vec![0; rank];
            api.check("get dimensions", (api.dimensions)(info, dimensions.as_mut_ptr(), rank))?;
            Ok(dimensions.into_iter().map(|n| usize::try_from(n).unwrap_or(0)).collect())
        })();
        (api.release_shape_info)(info);
        shape
    }
}

impl Peer for OnnxRuntime {
    fn inputs(&self) -> &[Tensor] {
        &self.input_tensors
    }

    fn outputs(&self) -> &[Tensor] {
        &self.output_tensors
    }

    fn set_input(&mut self, index: usize, values: &[f32]) -> Result<(), PeerError> {
        let bound = &mut self.inputs[index];
        check_length(ENGINE, &bound.tensor, values.len())?;
        bound.data.copy_from_slice(values);
        Ok(())
    }

    fn run(&mut self) -> Result<(), PeerError> {
        let names: Vec<_> = self.outputs.iter().map(|bound| bound.name.as_ptr()).collect();
        let mut values: Vec<_> = self.outputs.iter().map(|bound| bound.value).collect();
        self.call(&names, &mut values)
    }

    fn output(&mut self, index: usize) -> Result<Vec<f32>, PeerError> {
        let (bound, mut data) = (&self.outputs[index], null_mut());
        // SAFETY: the value is over `bound.data`; asking for its address orders our reads behind the library's writes.
        let status = unsafe { (self.api.tensor_data)(bound.value, &mut data) };
        self.api.check("read an output", status)?;
        // SAFETY: the address of as many floats as the tensor has elements, written by the run.
        Ok(unsafe { std::slice::from_raw_parts(data.cast::<f32>(), bound.tensor.len()) }.to_vec())
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        // SAFETY: made by this library, released once, nothing runs.
        unsafe {
            for bound in self.inputs.iter().chain(&self.outputs) {
                (self.api.release_value)(bound.value);
            }
            (self.api.release_session)(self.session);
        }
    }
}
