//! Threads that run the tasks of one kernel at a time.
//!
//! A token runs hundreds of kernels of a few microseconds. Workers therefore wait for the next one
//! spinning, and sleep only when none comes for a while. Nothing is allocated per kernel.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::shared::SharedMut;

/// How long a worker spins before it sleeps.
const SPIN: Duration = Duration::from_micros(200);

/// A task: its number and the number of the thread that runs it.
type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

struct Shared {
    /// The job of the current epoch; valid while `active` is not zero.
    job: UnsafeCell<Option<(Task<'static>, usize)>>,
    /// Counts jobs; workers wait for it to change.
    epoch: AtomicUsize,
    /// The next task of the job to be taken.
    next: AtomicUsize,
    /// Workers that have not finished with the job.
    active: AtomicUsize,
    /// Workers that sleep.
    asleep: AtomicUsize,
    stop: AtomicBool,
    panicked: AtomicBool,
}

// SAFETY: `job` is written by the caller of `run` while all workers wait (active == 0), and read by
// workers between the epoch's change (release/acquire) and their decrement of `active`.
unsafe impl Sync for Shared {}
// SAFETY: the job's reference is to a `Sync` closure.
unsafe impl Send for Shared {}

/// A fixed set of threads. The thread that calls [`Pool::run`] is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
}

impl Pool {
    /// A pool of `threads` threads, at least one: the caller's own and `threads - 1` new ones.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let mut workers = Vec::new();
        for worker in 1..threads.max(1) {
            let shared = Arc::clone(&shared);
            let name = format!("qwenvl-{worker}");
            workers.push(std::thread::Builder::new().name(name).spawn(move || work(&shared, worker))?);
        }
        let sleepers = workers.iter().map(|w| w.thread().clone()).collect();
        Ok(Pool { shared, workers, sleepers })
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(i, thread)` for every `i` below `tasks`, `thread` below [`Pool::threads`], and
    /// returns when all are done. Tasks are handed out in order; one thread runs one at a time.
    ///
    /// # Panics
    /// If a task panicked.
    pub fn run(&mut self, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            for i in 0..tasks {
                task(i, 0);
            }
            return;
        }
        let shared = &*self.shared;
        let erased: Task<'_> = &task;
        // SAFETY: the reference outlives its use: this function returns, or unwinds, only after all
        // workers have left the job (`Finish` waits for `active` to be zero).
        let erased = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(erased) };
        // SAFETY: `&mut self` and `active == 0`: no worker reads the job now.
        unsafe { *shared.job.get() = Some((erased, tasks)) };
        shared.next.store(0, Ordering::Relaxed);
        shared.active.store(self.workers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            self.sleepers.iter().for_each(Thread::unpark);
        }
        {
            let _finish = Finish(shared);
            take_tasks(shared, erased, tasks, 0);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a kernel task panicked");
    }
}

impl Pool {
    /// Cuts `out` into chunks of `rows` rows of `cols` elements and runs `f(first_row, chunk)` for each.
    ///
    /// # Panics
    /// If `out` is not whole rows, or a task panicked.
    pub fn run_on_chunks<T: Send>(
        &mut self,
        out: &mut [T],
        cols: usize,
        rows: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(out.len().is_multiple_of(cols) && rows > 0);
        let total = out.len();
        let shared = SharedMut::new(out);
        self.run(total.div_ceil(rows * cols), |task, _| {
            let start = task * rows * cols;
            // SAFETY: tasks own disjoint chunks.
            let chunk = unsafe { shared.part(start..(start + rows * cols).min(total)) };
            f(task * rows, chunk);
        });
    }
}

/// Waits for all workers, also when the caller's own task panics.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut spins = 0u32;
        while self.0.active.load(Ordering::Acquire) != 0 {
            spins += 1;
            // On a machine with fewer free cores than threads, let the worker have this one.
            if spins.is_multiple_of(4096) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.sleepers.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn take_tasks(shared: &Shared, task: Task<'_>, tasks: usize, thread: usize) {
    loop {
        let i = shared.next.fetch_add(1, Ordering::Relaxed);
        if i >= tasks {
            return;
        }
        task(i, thread);
    }
}

fn work(shared: &Shared, thread: usize) {
    let mut seen = 0;
    loop {
        seen = wait_for_job(shared, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch changed, so the job was written before; it stays until `active` drops.
        let job = unsafe { *shared.job.get() };
        if let Some((task, tasks)) = job {
            let run = std::panic::AssertUnwindSafe(|| take_tasks(shared, task, tasks, thread));
            if std::panic::catch_unwind(run).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.active.fetch_sub(1, Ordering::Release);
    }
}

fn wait_for_job(shared: &Shared, seen: usize) -> usize {
    let start = Instant::now();
    loop {
        for _ in 0..256 {
            let epoch = shared.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            shared.asleep.fetch_add(1, Ordering::SeqCst);
            while shared.epoch.load(Ordering::SeqCst) == seen {
                std::thread::park();
            }
            shared.asleep.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_on_a_valid_thread() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 3, 17, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |i, thread| {
                    assert!(thread < threads);
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn workers_wake_up_after_they_fell_asleep() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..3 {
            let sum = AtomicUsize::new(0);
            pool.run(100, |i, _| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
            std::thread::sleep(2 * SPIN);
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(50, |i, _| assert_ne!(i, 25));
        }));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, |i, _| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
