//! `consort unlink`

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{counted, plain};

/// Stop keeping a directory and a dataset identical; both keep what they have.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  consort unlink photos

The files stay, but this node gives other nodes nothing of them any more. If no other node that is
there may have them in a linked directory, it says so (\"lacking\" in JSON).")]
pub(crate) struct Unlink {
    /// The dataset
    name: String,
}

impl Unlink {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let request = Request::Unlink { name: self.name.clone() };
        let unlinked: json::Unlinked = context.node().one(request).await?;
        let dataset = plain(&self.name);
        let again = context.command(&format!("link {dataset} DIR"));
        context.ui.outcome(&unlinked, message(&unlinked, &dataset, &again))
    }
}

/// What was done, and what it leaves behind. `again` links the directory again.
fn message(unlinked: &json::Unlinked, dataset: &str, again: &str) -> String {
    let dir = plain(&unlinked.dir);
    let mut text =
        format!("Dataset {dataset} has no directory here any more; {dir} stays as it is.");
    if unlinked.pending != 0 {
        let pending = counted(unlinked.pending, "change", "changes");
        text.push_str(&format!("\n{pending} of the dataset had not arrived in it."));
    }
    if let Some(json::Lacking { key, why }) = &unlinked.lacking {
        text.push_str(&format!(
            "\nwarning: this node had some contents only in that directory, such as that of {}, and cannot give them \
             to others any more; {}.\nNext: link the directory again ({again}); before it is unlinked, link the dataset on \
             another node, and wait there until all has arrived.",
            plain(key),
            plain(why)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_unlinked_directory_leaves_behind_is_told_only_if_there_is_something() {
        let told = |pending, lacking| {
            let unlinked = json::Unlinked { done: true, dir: "/p".to_owned(), pending, lacking };
            message(&unlinked, "photos", "consort link photos DIR")
        };
        let done = "Dataset photos has no directory here any more; /p stays as it is.";
        assert_eq!(told(0, None), done);
        let late = format!("{done}\n2 changes of the dataset had not arrived in it.");
        assert_eq!(told(2, None), late);
        let (key, why) = ("a.jpg".to_owned(), "b is away".to_owned());
        let warned = told(2, Some(json::Lacking { key, why }));
        assert!(warned.starts_with(&format!("{late}\nwarning: ")), "{warned}");
        for word in ["that of a.jpg,", "any more; b is away.", "Next: ", "consort link photos DIR"]
        {
            assert!(warned.contains(word), "{warned}");
        }
    }
}
