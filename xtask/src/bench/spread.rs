//! Where the values of several runs lie.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) least: f64,
    pub(super) median: f64,
    pub(super) most: f64,
}

impl Spread {
    /// Nothing when there is no value.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (left, right) = values.split_at(values.len() / 2);
        let median = if left.len() == right.len() {
            f64::midpoint(*left.last()?, *right.first()?)
        } else {
            *right.first()?
        };
        Some(Self {
            least,
            median,
            most,
        })
    }

    /// The median, and the ends in parentheses, with so many decimals.
    pub(super) fn text(&self, decimals: usize) -> String {
        format!(
            "{:.decimals$} ({:.decimals$}-{:.decimals$})",
            self.median, self.least, self.most
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The median is the middle value, or the mean of the two in the middle.
    #[test]
    fn medians() {
        let spread = Spread::of([3.0, 1.0, 2.0]).expect("there are values");
        assert_eq!(spread.text(1), "2.0 (1.0-3.0)");
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]).expect("there are values");
        assert_eq!(spread.text(1), "2.5 (1.0-4.0)");
        assert_eq!(Spread::of([]), None);
    }
}
