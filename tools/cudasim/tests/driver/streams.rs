use cudarc::driver::{CudaContext, PushKernelArg, result, sys, sys::CUresult};

use crate::harness::{config, kernel, on_device};

#[test]
fn events_measure_the_modelled_time_of_their_stream() {
    on_device("streams::events_measure_the_modelled_time_of_their_stream", &[], || {
        let context = CudaContext::new(0).unwrap();
        let (busy, idle) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let mark = |stream: &cudarc::driver::CudaStream| stream.record_event(timed).unwrap();
        let mut data = busy.alloc_zeros::<u8>(256 << 20).unwrap();
        context.synchronize().unwrap();
        let (start, idle_start) = (mark(&busy), mark(&idle));
        busy.memset_zeros(&mut data).unwrap();
        let (middle, idle_end) = (mark(&busy), mark(&idle));
        busy.memset_zeros(&mut data).unwrap();
        let end = mark(&busy);
        let once = start.elapsed_ms(&middle).unwrap();
        let twice = start.elapsed_ms(&end).unwrap();
        // 256 MiB at nearly 2 TB/s.
        assert!((0.12..0.20).contains(&once), "{once} ms");
        assert!((twice / once - 2.0).abs() < 0.01, "{once} ms and {twice} ms");
        assert_eq!(idle_start.elapsed_ms(&idle_end).unwrap(), 0.0, "streams have a clock each");
        // A stream that waits is as late as what it waited for.
        idle.wait(&end).unwrap();
        let waited = mark(&idle);
        assert_eq!(start.elapsed_ms(&waited).unwrap(), twice);
        let untimed = busy.record_event(None).unwrap();
        assert!(start.elapsed_ms(&untimed).is_err());
    });
}

#[test]
fn a_kernel_takes_modelled_time() {
    on_device("streams::a_kernel_takes_modelled_time", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let add = kernel(&context, "vector", "add_f32");
        let n = 1 << 20;
        let a = stream.alloc_zeros::<f32>(n).unwrap();
        let mut c = stream.alloc_zeros::<f32>(n).unwrap();
        let size = n as i32;
        let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        context.synchronize().unwrap();
        let start = stream.record_event(timed).unwrap();
        let mut launch = stream.launch_builder(&add);
        launch.arg(&a).arg(&a).arg(&mut c).arg(&size);
        unsafe { launch.launch(config(1024, 1024)) }.unwrap();
        let end = stream.record_event(timed).unwrap();
        let ms = start.elapsed_ms(&end).unwrap();
        assert!((0.002..0.02).contains(&ms), "{ms} ms");
    });
}

/// Adds to a vector in one stream what another stream writes, with or without waiting for it.
fn late(waits: bool) -> f32 {
    let context = CudaContext::new(0).unwrap();
    unsafe { context.disable_event_tracking() };
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let add = kernel(&context, "vector", "add_f32");
    let n = 256;
    let mut a = first.alloc_zeros::<f32>(n).unwrap();
    let mut c = first.alloc_zeros::<f32>(n).unwrap();
    context.synchronize().unwrap();
    first.memcpy_htod(&vec![1.0f32; n], &mut a).unwrap();
    if waits {
        second.join(&first).unwrap();
    }
    let size = n as i32;
    let mut launch = second.launch_builder(&add);
    launch.arg(&a).arg(&a).arg(&mut c).arg(&size);
    unsafe { launch.launch(config(1, 256)) }.unwrap();
    second.clone_dtoh(&c).unwrap()[17]
}

#[test]
fn late_order_shows_a_missing_wait_between_streams() {
    let settings = [("CUDASIM_ORDER", "late")];
    on_device("streams::late_order_shows_a_missing_wait_between_streams", &settings, || {
        assert_eq!(late(true), 2.0);
        assert_eq!(late(false), 0.0, "the copy has not happened yet");
    });
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams() {
    let settings = [("CUDASIM_ORDER", "late")];
    on_device("streams::the_legacy_stream_waits_for_blocking_streams", &settings, || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        unsafe {
            let device = result::malloc_sync(4).unwrap();
            for (kind, expected) in
                [(result::stream::StreamKind::Default, 5), (result::stream::StreamKind::NonBlocking, 3)]
            {
                result::memset_d8_sync(device, 3, 4).unwrap();
                result::ctx::synchronize().unwrap();
                let stream = result::stream::create(kind).unwrap();
                result::memset_d8_async(device, 5, 4, stream).unwrap();
                let mut back = [0u8; 4];
                result::memcpy_dtoh_sync(&mut back, device).unwrap();
                assert_eq!(back, [expected; 4]);
                result::stream::synchronize(stream).unwrap();
                result::stream::destroy(stream).unwrap();
            }
        }
    });
}

#[test]
fn host_functions_run_in_order_and_must_not_call_the_driver() {
    on_device("streams::host_functions_run_in_order_and_must_not_call_the_driver", &[], || {
        use std::sync::atomic::{AtomicU32, Ordering};
        static SEEN: AtomicU32 = AtomicU32::new(0);
        unsafe extern "C" fn called(data: *mut std::ffi::c_void) {
            let mut free = 0;
            let refused = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut free.clone()) };
            assert_eq!(refused, CUresult::CUDA_ERROR_NOT_PERMITTED);
            SEEN.store(data as usize as u32, Ordering::SeqCst);
        }
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let result = unsafe {
            sys::cuLaunchHostFunc(stream.cu_stream(), Some(called), 42usize as *mut std::ffi::c_void)
        };
        assert_eq!(result, CUresult::CUDA_SUCCESS);
        stream.synchronize().unwrap();
        assert_eq!(SEEN.load(Ordering::SeqCst), 42);
    });
}

#[test]
fn handles_that_are_none_are_refused() {
    on_device("streams::handles_that_are_none_are_refused", &[], || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let invalid = CUresult::CUDA_ERROR_INVALID_HANDLE;
        unsafe {
            assert_eq!(sys::cuStreamSynchronize(0x1234usize as sys::CUstream), invalid);
            assert_eq!(sys::cuEventSynchronize(0x1234usize as sys::CUevent), invalid);
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
            assert_eq!(sys::cuEventSynchronize(stream.cast()), invalid, "a stream is no event");
            result::stream::destroy(stream).unwrap();
            assert_eq!(sys::cuStreamSynchronize(stream), invalid, "it is gone");
            assert_eq!(sys::cuModuleUnload(std::ptr::null_mut()), invalid);
            assert_eq!(sys::cuEventCreate(std::ptr::null_mut(), 0), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
    });
}
