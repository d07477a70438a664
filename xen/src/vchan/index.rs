//! Index arithmetic of one direction: free-running 32-bit producer and consumer, size a power of two.

/// Size of one direction's buffer, as a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order(u8);

impl Order {
    /// `order` must be below 32; the layout checks the narrower bounds.
    pub(super) const fn new(order: u8) -> Self {
        assert!(order < 32);
        Self(order)
    }

    pub(crate) const fn number(self) -> u8 {
        self.0
    }

    /// Bytes.
    pub(crate) const fn size(self) -> u32 {
        1 << self.0
    }

    /// Bytes between the two indices; `None` if that is more than the buffer holds, which no correct peer causes.
    pub(super) const fn fill(self, producer: u32, consumer: u32) -> Option<u32> {
        let fill = producer.wrapping_sub(consumer);
        if fill > self.size() { None } else { Some(fill) }
    }

    /// Where in the buffer the byte with this index lies.
    pub(super) const fn position(self, index: u32) -> usize {
        (index & (self.size() - 1)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORDER_12: Order = Order::new(12);

    #[test]
    fn vector_9_1_fill_across_the_wrap() {
        assert_eq!(ORDER_12.fill(0xffff_fffe, 0xffff_fff0), Some(14));
        assert_eq!(ORDER_12.position(0xffff_fffe), 0xffe);
        assert_eq!(0xffff_fffe_u32.wrapping_add(20), 0x12);
        assert_eq!(ORDER_12.fill(0x12, 0xffff_fff0), Some(34));
    }

    #[test]
    fn vector_9_1_hostile_producer() {
        assert_eq!(ORDER_12.fill(0x2000, 0), None);
        assert_eq!(ORDER_12.fill(0x1000, 0), Some(4096));
        assert_eq!(ORDER_12.fill(0x1001, 0), None);
        assert_eq!(ORDER_12.fill(0, 1), None, "consumer ahead of the producer");
    }

    /// All pairs of a model whose indices have 8 bits, placed at every position around the wrap of the real ones.
    #[test]
    fn fill_agrees_with_counting_for_all_small_distances() {
        let order = Order::new(3);
        for start in [0u32, 1, 7, 8, u32::MAX, u32::MAX - 7, u32::MAX - 8, 1 << 31] {
            for distance in 0..=255u32 {
                let fill = order.fill(start.wrapping_add(distance), start);
                assert_eq!(fill, (distance <= 8).then_some(distance));
            }
        }
    }

    proptest! {
        #[test]
        fn a_valid_fill_reaches_the_producer(order in 10u8..=20, producer: u32, consumer: u32) {
            let order = Order::new(order);
            if let Some(fill) = order.fill(producer, consumer) {
                prop_assert!(fill <= order.size());
                prop_assert_eq!(consumer.wrapping_add(fill), producer);
            } else {
                prop_assert!(producer.wrapping_sub(consumer) > order.size());
            }
            prop_assert!(order.position(producer) < order.size() as usize);
        }

        #[test]
        fn successive_indices_have_successive_positions(order in 10u8..=20, index: u32) {
            let order = Order::new(order);
            let next = order.position(index.wrapping_add(1));
            let size = order.size() as usize;
            prop_assert_eq!(next, (order.position(index) + 1) % size);
        }
    }
}
