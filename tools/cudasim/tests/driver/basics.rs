use cudarc::driver::{CudaContext, PushKernelArg, sys};

use crate::harness::{config, kernel, on_device};

#[test]
fn a_kernel_adds_two_vectors() {
    on_device("basics::a_kernel_adds_two_vectors", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let add = kernel(&context, "vector", "add_f32");
        let n = 1000;
        let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..n).map(|i| (i * i) as f32).collect();
        let (a_dev, b_dev) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
        let mut c_dev = stream.alloc_zeros::<f32>(n).unwrap();
        let size = n as i32;
        let mut launch = stream.launch_builder(&add);
        launch.arg(&a_dev).arg(&b_dev).arg(&mut c_dev).arg(&size);
        unsafe { launch.launch(config(4, 128)) }.unwrap();
        let c = stream.clone_dtoh(&c_dev).unwrap();
        assert!(c.iter().enumerate().all(|(i, c)| *c == a[i] + b[i]));
        context.check_err().unwrap();
    });
}

#[test]
fn the_device_is_an_a100_that_says_it_is_simulated() {
    on_device("basics::the_device_is_an_a100_that_says_it_is_simulated", &[], || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(CudaContext::device_count().unwrap(), 1);
        let name = context.name().unwrap();
        assert!(name.contains("A100") && name.contains("simulated"), "{name}");
        assert_eq!(context.compute_capability().unwrap(), (8, 0));
        let sms = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        assert_eq!(context.attribute(sms).unwrap(), 108);
        assert!(context.total_mem().unwrap() > 79 << 30);
        let (free, total) = context.mem_get_info().unwrap();
        assert_eq!(free, total);
        assert!(context.has_async_alloc());
        let stack = sys::CUlimit::CU_LIMIT_STACK_SIZE;
        context.set_limit(stack, 4096).unwrap();
        assert_eq!(context.get_limit(stack).unwrap(), 4096);
        context.set_blocking_synchronize().unwrap();
    });
}

#[test]
fn settings_choose_another_card_and_how_many() {
    let settings = [("CUDASIM_DEVICE", "rtx4090"), ("CUDASIM_DEVICES", "3"), ("CUDASIM_MEMORY", "64M")];
    on_device("basics::settings_choose_another_card_and_how_many", &settings, || {
        assert_eq!(CudaContext::device_count().unwrap(), 3);
        let contexts: Vec<_> = (0..3).map(|i| CudaContext::new(i).unwrap()).collect();
        for context in &contexts {
            assert!(context.name().unwrap().contains("4090"));
            assert_eq!(context.compute_capability().unwrap(), (8, 9));
            assert_eq!(context.total_mem().unwrap(), 64 << 20);
        }
        assert_ne!(contexts[0].uuid().unwrap().bytes, contexts[1].uuid().unwrap().bytes);
        assert!(CudaContext::new(3).is_err());
    });
}

#[test]
fn settings_may_come_from_a_file() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("settings_from_a_file");
    std::fs::write(&path, "device = h100 # the one with more shared memory\ndevices = 2\nmemory = 1G\n")
        .unwrap();
    let settings = [("CUDASIM_CONFIG", path.to_str().unwrap()), ("CUDASIM_MEMORY", "2G")];
    on_device("basics::settings_may_come_from_a_file", &settings, || {
        let context = CudaContext::new(1).unwrap();
        assert!(context.name().unwrap().contains("H100"));
        assert_eq!(context.total_mem().unwrap(), 2 << 30, "the environment wins");
    });
}

#[test]
fn a_bad_setting_is_told_and_fails_the_initialisation() {
    let settings = [("CUDASIM_DEVICE", "gtx1080")];
    let ended = crate::harness::outcome(
        "basics::a_bad_setting_is_told_and_fails_the_initialisation",
        &settings,
        || {
            let error = crate::harness::code(CudaContext::new(0));
            assert_eq!(error, sys::CUresult::CUDA_ERROR_SYSTEM_NOT_READY);
        },
    );
    if let Some(output) = ended {
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("gtx1080") && text.contains("a100-80g"), "{text}");
    }
}

#[test]
fn work_of_several_devices_goes_on_side_by_side() {
    let settings = [("CUDASIM_DEVICES", "2")];
    on_device("basics::work_of_several_devices_goes_on_side_by_side", &settings, || {
        let threads: Vec<_> = (0..2)
            .map(|device| {
                std::thread::spawn(move || {
                    let context = CudaContext::new(device).unwrap();
                    let stream = context.new_stream().unwrap();
                    let fill = kernel(&context, "vector", "fill_parts");
                    let mut out = stream.alloc_zeros::<u32>(64).unwrap();
                    let part = 8;
                    for _ in 0..10 {
                        let mut launch = stream.launch_builder(&fill);
                        launch.arg(&mut out).arg(&part);
                        unsafe { launch.launch(config(8, 32)) }.unwrap();
                    }
                    stream.clone_dtoh(&out).unwrap()
                })
            })
            .collect();
        for thread in threads {
            let out = thread.join().unwrap();
            assert!(out.iter().enumerate().all(|(i, value)| *value == i as u32 / 8));
        }
    });
}

#[test]
fn a_copy_between_devices_arrives() {
    let settings = [("CUDASIM_DEVICES", "2")];
    on_device("basics::a_copy_between_devices_arrives", &settings, || {
        let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
        let (from, to) = (first.new_stream().unwrap(), second.new_stream().unwrap());
        let data: Vec<u32> = (0..1000).collect();
        let source = from.clone_htod(&data).unwrap();
        from.synchronize().unwrap();
        let mut target = to.alloc_zeros::<u32>(1000).unwrap();
        to.memcpy_dtod(&source, &mut target).unwrap();
        assert_eq!(to.clone_dtoh(&target).unwrap(), data);
    });
}
