//! What the driver says (900 to 908) to captures that no graph can hold.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus};
use cudarc::driver::{CudaContext, CudaStream, result};

use crate::harness::{code, on_device};

const GLOBAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
const THREAD_LOCAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const RELAXED: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
const INVALIDATED: CUresult = CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;

fn capturing(mode: CUstreamCaptureMode) -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).unwrap();
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    stream.begin_capture(mode).unwrap();
    (context, stream)
}

fn end(stream: &CudaStream) -> Result<sys::CUgraph, cudarc::driver::DriverError> {
    unsafe { result::stream::end_capture(stream.cu_stream()) }
}

#[test]
fn waiting_for_a_capturing_stream_is_900() {
    on_device("capture::waiting_for_a_capturing_stream_is_900", &[], || {
        let (context, stream) = capturing(RELAXED);
        assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(
            stream.capture_status().unwrap(),
            CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED
        );
        assert_eq!(code(end(&stream)), INVALIDATED);
        assert_eq!(stream.capture_status().unwrap(), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
        stream.begin_capture(RELAXED).unwrap();
        assert_eq!(code(context.synchronize()), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(code(end(&stream)), INVALIDATED);
        context.synchronize().unwrap();
    });
}

#[test]
fn an_allocation_that_may_synchronise_is_900_unless_relaxed() {
    on_device("capture::an_allocation_that_may_synchronise_is_900_unless_relaxed", &[], || {
        let (_context, stream) = capturing(GLOBAL);
        let alloc = || unsafe { result::malloc_sync(100) };
        assert_eq!(code(alloc()), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(code(end(&stream)), INVALIDATED);
        // Another thread is disturbed by a global capture only.
        for (mode, disturbed) in [(GLOBAL, true), (THREAD_LOCAL, false), (RELAXED, false)] {
            stream.begin_capture(mode).unwrap();
            let thread = std::thread::spawn(move || {
                let context = CudaContext::new(0).unwrap();
                context.bind_to_thread().unwrap();
                unsafe { result::malloc_sync(100) }.is_err()
            });
            assert_eq!(thread.join().unwrap(), disturbed, "{mode:?}");
            assert_eq!(end(&stream).is_err(), disturbed, "{mode:?}");
        }
        stream.begin_capture(RELAXED).unwrap();
        alloc().unwrap();
        end(&stream).unwrap();
    });
}

#[test]
fn waiting_for_an_event_from_outside_is_905() {
    on_device("capture::waiting_for_an_event_from_outside_is_905", &[], || {
        let context = CudaContext::new(0).unwrap();
        let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let event = other.record_event(None).unwrap();
        stream.begin_capture(RELAXED).unwrap();
        assert_eq!(code(stream.wait(&event)), CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        assert_eq!(code(end(&stream)), INVALIDATED);
        // With event tracking on, cudarc makes this mistake for the program: a slice that was used before is waited
        // for.
        let mut data = other.alloc_zeros::<u8>(16).unwrap();
        stream.begin_capture(RELAXED).unwrap();
        let _ = stream.memset_zeros(&mut data);
        assert_eq!(code(end(&stream)), INVALIDATED);
    });
}

#[test]
fn an_event_of_a_capture_cannot_be_asked() {
    on_device("capture::an_event_of_a_capture_cannot_be_asked", &[], || {
        let (_context, stream) = capturing(RELAXED);
        let event = stream.record_event(None).unwrap();
        assert_eq!(code(event.synchronize()), CUresult::CUDA_ERROR_CAPTURED_EVENT);
        assert_eq!(code(end(&stream)), INVALIDATED);
    });
}

#[test]
fn a_fork_that_is_not_joined_is_904() {
    on_device("capture::a_fork_that_is_not_joined_is_904", &[], || {
        let (context, stream) = capturing(RELAXED);
        let other = context.new_stream().unwrap();
        let fork = stream.record_event(None).unwrap();
        other.wait(&fork).unwrap();
        assert_eq!(other.capture_status().unwrap(), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
        let _inside = unsafe { other.alloc::<u8>(16) }.unwrap();
        assert_eq!(code(end(&other)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
        assert_eq!(code(end(&stream)), INVALIDATED);
        stream.begin_capture(RELAXED).unwrap();
        let fork = stream.record_event(None).unwrap();
        other.wait(&fork).unwrap();
        let _more = unsafe { other.alloc::<u8>(16) }.unwrap();
        assert_eq!(code(end(&stream)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        assert_eq!(other.capture_status().unwrap(), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
    });
}

#[test]
fn two_captures_do_not_merge() {
    on_device("capture::two_captures_do_not_merge", &[], || {
        let (context, first) = capturing(RELAXED);
        let second = context.new_stream().unwrap();
        second.begin_capture(RELAXED).unwrap();
        let event = first.record_event(None).unwrap();
        assert_eq!(code(second.wait(&event)), CUresult::CUDA_ERROR_STREAM_CAPTURE_MERGE);
        assert_eq!(code(end(&first)), INVALIDATED);
        assert_eq!(code(end(&second)), INVALIDATED);
    });
}

#[test]
fn the_legacy_stream_takes_no_part() {
    on_device("capture::the_legacy_stream_takes_no_part", &[], || {
        let context = CudaContext::new(0).unwrap();
        unsafe { context.disable_event_tracking() };
        let legacy = context.default_stream();
        assert_eq!(code(legacy.begin_capture(RELAXED)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        let mut data = legacy.alloc_zeros::<u8>(16).unwrap();
        let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
        unsafe { result::stream::begin_capture(blocking, RELAXED) }.unwrap();
        let implicit = CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        assert_eq!(code(legacy.memset_zeros(&mut data)), implicit);
        assert_eq!(code(unsafe { result::stream::end_capture(blocking) }), INVALIDATED);
        // A stream that has nothing to do with the legacy one may be captured meanwhile.
        let stream = context.new_stream().unwrap();
        stream.begin_capture(RELAXED).unwrap();
        legacy.memset_zeros(&mut data).unwrap();
        end(&stream).unwrap();
    });
}

#[test]
fn begin_and_end_must_match() {
    on_device("capture::begin_and_end_must_match", &[], || {
        let (context, stream) = capturing(THREAD_LOCAL);
        assert_eq!(code(stream.begin_capture(RELAXED)), CUresult::CUDA_ERROR_ILLEGAL_STATE);
        let elsewhere = stream.clone();
        let context_there = context.clone();
        let ended = std::thread::spawn(move || {
            context_there.bind_to_thread().unwrap();
            code(end(&elsewhere))
        });
        assert_eq!(ended.join().unwrap(), CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
        end(&stream).unwrap();
        assert_eq!(code(end(&stream)), CUresult::CUDA_ERROR_ILLEGAL_STATE);
    });
}
