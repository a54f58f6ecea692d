//! Makes an input shorter that something was found with: steps stand alone, so any of them can be left out.

/// Leaves out what is not needed for `fails` to say so, by trying at most `tries` times. `fails` is true of `steps`.
///
/// What is wrong stays wrong, so first the shortest beginning is looked for, by halving; then the shortest end of it, by doubling. Then parts of it are left out: halves, then
/// smaller ones, then single steps, until none can be.
///
/// # Errors
///
/// What `fails` answers.
pub fn shrink<T: Clone, E>(
    steps: &[T],
    tries: usize,
    mut fails: impl FnMut(&[T]) -> Result<bool, E>,
) -> Result<Vec<T>, E> {
    let mut left = tries;
    let mut attempt = |steps: &[T]| {
        if left == 0 {
            return Ok(false);
        }
        left -= 1;
        fails(steps)
    };
    let (mut enough, mut too_few) = (steps.len(), 0);
    while enough - too_few > 1 {
        let length = too_few + (enough - too_few) / 2;
        if attempt(&steps[..length])? {
            enough = length;
        } else {
            too_few = length;
        }
    }
    let steps = &steps[..enough];
    let mut best = steps.to_vec();
    let mut length = 1;
    while length < steps.len() {
        let end = &steps[steps.len() - length..];
        if attempt(end)? {
            best = end.to_vec();
            break;
        }
        length *= 2;
    }
    let mut part = best.len().div_ceil(2);
    while part != 0 {
        let before = best.len();
        // From the end: what is found first is what the last steps do not need.
        let mut end = best.len();
        while end != 0 && best.len() > 1 {
            let start = end.saturating_sub(part);
            let shorter: Vec<T> = best[..start].iter().chain(&best[end..]).cloned().collect();
            if !shorter.is_empty() && attempt(&shorter)? {
                best = shorter;
            }
            end = start.min(best.len());
        }
        if part > 1 {
            part = part.div_ceil(2);
        } else if best.len() == before {
            part = 0;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shrunk(steps: &[u32], tries: usize, needed: &[u32]) -> (Vec<u32>, usize) {
        let mut count = 0;
        let shorter = shrink(steps, tries, |steps| {
            count += 1;
            // All that are needed, in this order.
            let mut rest = steps.iter();
            Ok::<_, ()>(needed.iter().all(|wanted| rest.any(|step| step == wanted)))
        });
        (shorter.unwrap(), count)
    }

    #[test]
    fn only_what_is_needed_is_left() {
        let steps: Vec<u32> = (0..5000).collect();
        for needed in [&[4999][..], &[0, 4999], &[3, 17, 2500, 2501, 4998], &[1, 2, 3, 4, 5, 6, 7]] {
            let (left, tries) = shrunk(&steps, 10_000, needed);
            assert_eq!(left, needed);
            assert!(tries < 400, "{tries} tries for {needed:?}");
        }
        assert_eq!(shrunk(&[5], 100, &[5]).0, [5]);
    }

    #[test]
    fn without_tries_it_stays_as_it_is_and_with_few_it_still_fails() {
        let steps: Vec<u32> = (0..100).collect();
        assert_eq!(shrunk(&steps, 0, &[7]).0, steps);
        let (left, _) = shrunk(&steps, 12, &[7, 80]);
        assert!(left.contains(&7) && left.contains(&80) && left.len() < 100, "{left:?}");
    }
}
