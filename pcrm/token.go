package pcrm

import (
	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/ids"
)

// NoPad is the pad token id to use for responses without padding. No tokenizer has
// negative ids.
const NoPad = ids.NoPad

// Span returns the token positions [start, end) at which the token form of the loss
// compares a pair. Each of the two rows holds the prompt and a response:
//
//	start = the first position at which chosen and rejected differ
//	end   = the end of the longer response
//
// A response ends at the first padToken at or after start, or at the end of its row.
// Use [NoPad] if there is no padding. Padding is on the right, and the shorter of two
// rows of unequal length counts as padded. Equal rows do not differ anywhere; their span
// is the last position, [width-1, width), or [0, 0) if they are empty.
func Span(chosen, rejected []int64, padToken int64) (start, end int) {
	width := max(len(chosen), len(rejected))
	start = ids.FirstDifference(chosen, rejected)
	if padToken != NoPad && len(chosen) != len(rejected) {
		// After the end of the shorter row, padding of the longer row is not a difference.
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

// tokensFrom counts the tokens of a response from start onwards.
func tokensFrom(row []int64, start int, padToken int64) int {
	if start >= len(row) {
		return 0
	}
	if padToken == NoPad {
		return len(row) - start
	}
	return ids.FirstEqual(row[start:], padToken)
}

// TokenLoss computes the loss in the form of the authors' released code: the pair loss
// at every token position of the pair's [Span], averaged over the span, then over the
// pairs. Row i of the scores and of the token ids is [i*width : (i+1)*width]; the number
// of rows is len(delta):
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
// The gradients are 0 outside the span. The options, the result and the destinations that
// may be nil are as in [RewardLoss], with one element of losses per row. Centering applies
// at every position of the span.
//
// The span extends to the end of the longer response, so it includes positions at which
// the shorter one is padding. The released code does this, and this form reproduces it.
// Scores outside the span are ignored.
//
// padToken must not occur inside a response. If the pad token also ends turns, overwrite
// the padding with an id that no row contains, and pass that id.
//
// Errors, each an [*ArgumentError]: no scores or no rows; slices whose lengths do not
// match; a delta that is not greater than 0; an option out of range; with CheckFinite, a
// score inside a span that is NaN or infinite (its index counts through the whole slice).
// After an error the contents of the destinations are undefined.
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

// tokenRows computes the rows of block b and returns the sum of their losses.
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
