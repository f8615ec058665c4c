package pcrm

import (
	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/ids"
)

// NoPad is the pad token id of responses that hold no padding: no tokenizer gives
// a negative id.
const NoPad = ids.NoPad

// Span returns the token positions [start, end) at which the token form of the loss
// looks at a pair, which is a row of prompt and response of each:
//
//	start = the first position at which chosen and rejected differ
//	end   = the end of the longer response
//
// A response ends at the first padToken at or after start, or where its row ends;
// use [NoPad] where there is no padding. Padding is on the right, and the shorter
// of two rows of unequal length counts as padded. Equal rows have no such position
// and get their last: [width-1, width), or [0, 0) when they are empty.
func Span(chosen, rejected []int64, padToken int64) (start, end int) {
	width := max(len(chosen), len(rejected))
	start = ids.FirstDifference(chosen, rejected)
	if padToken != NoPad && len(chosen) != len(rejected) {
		// Where one row has ended, only tokens of the other are a difference.
		longer := chosen
		if len(rejected) > len(chosen) {
			longer = rejected
		}
		if start == min(len(chosen), len(rejected)) {
			for start < width && longer[start] == padToken {
				start++
			}
		}
	}
	if start == width {
		return max(width-1, 0), width
	}
	return start, start + max(tokensFrom(chosen, start, padToken), tokensFrom(rejected, start, padToken))
}

// tokensFrom counts the tokens of a response from start on.
func tokensFrom(row []int64, start int, padToken int64) int {
	if start >= len(row) {
		return 0
	}
	if padToken == NoPad {
		return len(row) - start
	}
	return ids.FirstEqual(row[start:], padToken)
}

// TokenLoss is the loss in the form of the authors' released code: the pair loss at
// every token position of the pair's [Span], its mean over the span, then the mean
// over the pairs. Row i of the scores and of the token ids is
// [i*width : (i+1)*width], where the number of rows is len(delta):
//
//	for i := range delta {
//		start, end := Span(chosenIDs[row i], rejectedIDs[row i], padToken)
//		for t := start; t < end; t++ {
//			loss, g := PairLoss(chosen[i][t]-rejected[i][t], delta[i], e)
//			losses[i] += loss / (end-start)
//			gradChosen[i][t] = g * scale / (end-start)
//			gradRejected[i][t] = -g * scale / (end-start)
//		}
//	}
//
// and the gradients are 0 outside the span. All options, destinations that may be
// nil and the result are as in [RewardLoss], losses having one element a row;
// centering applies at every position of the span.
//
// The span of the longer response includes positions at which the shorter one is
// padding. That is what the released code does and what this form is for; scores
// outside the span are not looked at.
//
// padToken must not occur inside a response. Where the pad token also ends turns, overwrite
// the padding with an id that no row has, and pass that id.
//
// Errors, each an [*ArgumentError]: no rows or rows of no width, slices whose lengths
// do not fit each other, a delta that is not greater than 0, options out of range;
// with CheckFinite a score in a span that is NaN or infinite (its index is that in
// the whole slice). What the destinations hold after an error is undefined.
func TokenLoss[F Float](losses, gradChosen, gradRejected, chosen, rejected []F, chosenIDs, rejectedIDs []int64, delta []F, padToken int64, o RewardOptions) (float64, error) {
	rows, n := len(delta), len(chosen)
	if err := o.Validate(); err != nil {
		return 0, err
	}
	switch {
	case n == 0:
		return 0, argErr("chosen_rewards", -1, "must have at least one score, got none")
	case rows == 0 || n%rows != 0:
		return 0, argErr("delta", -1, "must have one element per row of chosen_rewards, got %d for %d scores", rows, n)
	}
	if err := checkLengths("chosen_rewards", n,
		sliceLength{"rejected_rewards", len(rejected), true},
		sliceLength{"chosen_ids", len(chosenIDs), true},
		sliceLength{"rejected_ids", len(rejectedIDs), true},
		sliceLength{"gradChosen", len(gradChosen), gradChosen != nil || gradRejected != nil},
		sliceLength{"gradRejected", len(gradRejected), gradRejected != nil || gradChosen != nil},
	); err != nil {
		return 0, err
	}
	if err := checkLengths("delta", rows, sliceLength{"losses", len(losses), losses != nil || o.Reduction == None}); err != nil {
		return 0, err
	}
	j := takeJob[F]()
	defer j.release()
	j.form = tokenForm
	j.losses, j.gradChosen, j.gradRejected = losses, gradChosen, gradRejected
	j.chosen, j.rejected, j.delta = chosen, rejected, delta
	j.chosenIDs, j.rejectedIDs, j.padToken = chosenIDs, rejectedIDs, padToken
	j.settings = o.settings(rows)
	j.width = n / rows
	j.rows = max(1, blockPairs/j.width)
	if total, ok := j.run((rows+j.rows-1)/j.rows, n); ok {
		return total * j.scale, nil
	}
	for i, d := range delta {
		if err := argument.Positive("delta", i, d); err != nil {
			return 0, err
		}
		row := i * j.width
		start, end := Span(chosenIDs[row:row+j.width], rejectedIDs[row:row+j.width], padToken)
		if err := checkScores(chosen[row+start:row+end], rejected[row+start:row+end], row+start, o.CheckFinite); err != nil {
			return 0, err
		}
	}
	return 0, errChanged
}

// tokenRows does the rows of block b and returns the sum of their losses.
func (j *job[F]) tokenRows(b int) (sum float64, ok bool) {
	s := j.settings
	for i := b * j.rows; i < min((b+1)*j.rows, len(j.delta)); i++ {
		row, next := i*j.width, (i+1)*j.width
		start, end := Span(j.chosenIDs[row:next], j.rejectedIDs[row:next], j.padToken)
		start, end = row+start, row+end
		if j.gradChosen != nil {
			clear(j.gradChosen[row:start])
			clear(j.gradChosen[end:next])
			clear(j.gradRejected[row:start])
			clear(j.gradRejected[end:next])
		}
		length := float64(end - start)
		s.scale = j.scale / length
		loss, ok := rewardBlock(nil, part(j.gradChosen, start, end), part(j.gradRejected, start, end),
			j.chosen[start:end], j.rejected[start:end], j.delta[i:i+1], s)
		if !ok {
			return 0, false
		}
		loss /= length
		sum += loss
		if j.losses != nil {
			j.losses[i] = F(loss)
		}
	}
	return sum, true
}
