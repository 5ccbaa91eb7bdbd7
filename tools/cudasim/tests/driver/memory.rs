use cudarc::driver::{CudaContext, result, sys, sys::CUresult};

use crate::harness::{code, on_device, outcome};

#[test]
fn allocations_are_aligned_and_copies_are_checked() {
    on_device("memory::allocations_are_aligned_and_copies_are_checked", &[], || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        unsafe {
            let mut seen = Vec::new();
            for bytes in [1, 3, 255, 257, 70_000] {
                let address = result::malloc_sync(bytes).unwrap();
                assert!(address.is_multiple_of(256), "{address:#x}");
                seen.push(address);
            }
            let data = [7u8; 300];
            result::memcpy_htod_sync(seen[3], &data[..257]).unwrap();
            let beyond = result::memcpy_htod_sync(seen[3], &data[..258]);
            assert_eq!(code(beyond), CUresult::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(
                code(result::memcpy_htod_sync(0xdead_0000, &data)),
                CUresult::CUDA_ERROR_INVALID_VALUE
            );
            result::memset_d8_sync(seen[4], 9, 70_000).unwrap();
            assert_eq!(code(result::memset_d8_sync(seen[4], 9, 70_001)), CUresult::CUDA_ERROR_INVALID_VALUE);
            let mut back = [0u8; 257];
            result::memcpy_dtod_sync(seen[3] + 10, seen[4], 20).unwrap();
            result::memcpy_dtoh_sync(&mut back, seen[3]).unwrap();
            assert_eq!(back[9..31].iter().filter(|byte| **byte == 9).count(), 20);
            for address in &seen {
                result::free_sync(*address).unwrap();
                assert_eq!(code(result::free_sync(*address)), CUresult::CUDA_ERROR_INVALID_VALUE, "twice");
            }
            assert_eq!(code(result::free_sync(seen[0] + 1)), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let (free, total) = context.mem_get_info().unwrap();
        assert_eq!(free, total);
    });
}

#[test]
fn pinned_memory_is_where_the_host_sees_it() {
    on_device("memory::pinned_memory_is_where_the_host_sees_it", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let mut pinned = unsafe { context.alloc_pinned::<u32>(1000) }.unwrap();
        for (i, word) in pinned.as_mut_slice().unwrap().iter_mut().enumerate() {
            *word = i as u32;
        }
        let device = stream.clone_htod(&pinned).unwrap();
        assert_eq!(stream.clone_dtoh(&device).unwrap(), pinned.as_slice().unwrap());
        let (mut kind, address) = (0u32, pinned.as_ptr().unwrap() as u64);
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        let known = unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, address) };
        assert_eq!((known, kind), (CUresult::CUDA_SUCCESS, 1));
    });
}

#[test]
fn rows_are_copied_at_their_distances() {
    on_device("memory::rows_are_copied_at_their_distances", &[], || {
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let host: Vec<u8> = (0..60).collect();
        unsafe {
            let device = result::malloc_sync(200).unwrap();
            result::memset_d8_sync(device, 0xee, 200).unwrap();
            // Three rows of 10 bytes, 20 apart here, 50 apart there.
            let mut zeroed = std::mem::MaybeUninit::<sys::CUDA_MEMCPY2D>::zeroed();
            let copy = zeroed.as_mut_ptr();
            (*copy).srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
            (*copy).srcHost = host.as_ptr().cast();
            (*copy).srcPitch = 20;
            (*copy).srcXInBytes = 5;
            (*copy).dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
            (*copy).dstDevice = device;
            (*copy).dstPitch = 50;
            (*copy).WidthInBytes = 10;
            (*copy).Height = 3;
            assert_eq!(sys::cuMemcpy2D_v2(copy), CUresult::CUDA_SUCCESS);
            let mut back = [0u8; 200];
            result::memcpy_dtoh_sync(&mut back, device).unwrap();
            for row in 0..3 {
                assert_eq!(back[row * 50..row * 50 + 10], host[row * 20 + 5..row * 20 + 15]);
                assert_eq!(back[row * 50 + 10], 0xee);
            }
            (*copy).Height = 5;
            assert_eq!(sys::cuMemcpy2D_v2(copy), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
    });
}

#[test]
fn bytes_that_nobody_wrote_are_noted_when_they_reach_the_host() {
    let name = "memory::bytes_that_nobody_wrote_are_noted_when_they_reach_the_host";
    let ended = outcome(name, &[("CUDASIM_EXIT_CODE", "5")], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let device = unsafe { stream.alloc::<u8>(100) }.unwrap();
        assert_eq!(stream.clone_dtoh(&device).unwrap(), [0xff; 100]);
    });
    if let Some(output) = ended {
        assert_eq!(output.status.code(), Some(5));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("100 of 100 bytes copied to the host were never written"), "{text}");
    }
}

#[test]
fn pools_count_what_was_taken() {
    on_device("memory::pools_count_what_was_taken", &[], || {
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let used = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        unsafe {
            let mut pool = std::ptr::null_mut();
            assert_eq!(
                sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()),
                CUresult::CUDA_SUCCESS
            );
            let count = |attribute| {
                let mut bytes = 0u64;
                let result = sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast());
                assert_eq!(result, CUresult::CUDA_SUCCESS);
                bytes
            };
            let slice = stream.alloc::<u8>(1000).unwrap();
            assert_eq!((count(used), count(high)), (1000, 1000));
            drop(slice);
            assert_eq!((count(used), count(high)), (0, 1000));
            let mut threshold = u64::MAX;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            let result = sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast());
            assert_eq!(result, CUresult::CUDA_SUCCESS);
            assert_eq!(count(attribute), u64::MAX);
        }
    });
}
