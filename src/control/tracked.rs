//! What was read last, and what was wrong with it.

use alloc::vec::Vec;

/// A group of values and what was wrong with it when it was read last, so that a known problem is
/// not announced again each time dom0 rewrites its keys one by one.
#[derive(Debug)]
pub(super) struct Tracked<T, E> {
    pub(super) value: T,
    problems: Vec<E>,
}

impl<T: Default, E> Default for Tracked<T, E> {
    fn default() -> Self {
        Self { value: T::default(), problems: Vec::new() }
    }
}

impl<T, E: PartialEq + Clone> Tracked<T, E> {
    /// Notes what was read; gives the problems that are new.
    pub(super) fn update(&mut self, value: T, problems: Vec<E>) -> Vec<E> {
        self.value = value;
        let known = core::mem::replace(&mut self.problems, problems.clone());
        problems.into_iter().filter(|problem| !known.contains(problem)).collect()
    }

    /// What was wrong when it was read last.
    pub(super) fn problems(&self) -> &[E] {
        &self.problems
    }

    /// Has every problem announced again.
    pub(super) fn forget_problems(&mut self) {
        self.problems.clear();
    }
}

/// Runs a reader and gathers what it reports.
pub(super) fn collect<T, E>(read: impl FnOnce(&mut dyn FnMut(E)) -> T) -> (T, Vec<E>) {
    let mut problems = Vec::new();
    let value = read(&mut |problem| problems.push(problem));
    (value, problems)
}
