//! Process-wide state that is a plain static in the image and thread-local on the host.
//!
//! The image has one vCPU and its only interrupt handler is assembly that touches no Rust state, so a static cell
//! needs no lock. On the host every test thread has its own hypervisor, hence its own state.

/// A static of the image that need not be `Sync`.
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(crate) struct Global<T>(T);

// SAFETY: the image runs on one vCPU, starts no thread, and its interrupt handlers are assembly that touches no
// `Global`; exception handlers end the domain.
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
unsafe impl<T> Sync for Global<T> {}

#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
impl<T> Global<T> {
    pub(crate) const fn new(value: T) -> Global<T> {
        Global(value)
    }

    /// Same shape as `std::thread::LocalKey::with`.
    pub(crate) fn with<R>(&'static self, action: impl FnOnce(&'static T) -> R) -> R {
        action(&self.0)
    }
}

/// Declares state with a constant initial value; use it as `NAME.with(|state| ...)`.
macro_rules! global {
    ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
        #[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
        $(#[$attribute])*
        static $name: $crate::mem::Global<$type> = $crate::mem::Global::new($value);
        #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
        std::thread_local! {
            // Never dropped: values of other thread-locals may use it while the thread ends.
            $(#[$attribute])*
            static $name: core::mem::ManuallyDrop<$type> = const { core::mem::ManuallyDrop::new($value) };
        }
    };
}
pub(crate) use global;
