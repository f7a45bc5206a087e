//! Real-time scheduling for measurements: other processes of the machine must not delay the threads that measure.

use std::io;

use crate::sys;

/// Lowest of the real-time priorities: above every ordinary thread, below everything else that runs in real time.
const PRIORITY: i32 = 1;

/// While this value lives, the calling thread runs under SCHED_RR. Threads and processes that it starts inherit the
/// policy and keep it.
///
/// The kernel leaves 5 % of each second to ordinary threads (`sched_rt_runtime_us`), so a thread that never sleeps
/// cannot lock up the machine.
#[derive(Debug)]
pub struct RealTime(());

impl RealTime {
    /// # Errors
    /// When the kernel does not permit it (it needs CAP_SYS_NICE or RLIMIT_RTPRIO), or when the caller has chosen
    /// another policy than SCHED_OTHER, which is kept.
    pub fn request() -> io::Result<Self> {
        if sys::scheduling_policy()? != libc::SCHED_OTHER {
            let message = "the caller has chosen a scheduling policy";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        sys::set_scheduling_policy(libc::SCHED_RR, PRIORITY)?;
        Ok(Self(()))
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        // Lowering needs no permission.
        let _ = sys::set_scheduling_policy(libc::SCHED_OTHER, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_set_where_permitted_and_always_restored() {
        // A thread of its own: tests of one process share theirs.
        std::thread::spawn(|| {
            let before = sys::scheduling_policy().unwrap();
            if let Ok(real_time) = RealTime::request() {
                assert_eq!(sys::scheduling_policy().unwrap(), libc::SCHED_RR);
                let inherited = std::thread::spawn(sys::scheduling_policy).join().unwrap();
                assert_eq!(inherited.unwrap(), libc::SCHED_RR);
                assert!(RealTime::request().is_err(), "it was chosen already");
                drop(real_time);
            }
            assert_eq!(sys::scheduling_policy().unwrap(), before);
        })
        .join()
        .unwrap();
    }
}
