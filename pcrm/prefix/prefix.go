// Package prefix plans how a causal language model processes the rows of a batch so that
// prefixes shared by several rows are computed once.
//
// Rows with a common prefix form a tree. Each path from the root is a row, and a token that
// several rows share occurs once. The tokens of a tree are laid out in depth-first order, so the
// descendants of a token follow it without a gap. The end of each token's descendants determines
// the attention mask:
//
//	token q attends to token k  if and only if  k <= q < ends[k]
//
// A token thus attends to itself and to the tokens before it in its row, as in a causal model of
// that row alone.
//
// [Plan.Arrange] sorts the rows and decides which rows share tokens. [Plan.Pack] writes the
// tokens, their positions and ends, and where each token of the batch is computed. Both take time
// linear in the number of tokens, apart from sorting at branches. They allocate nothing once a
// Plan is large enough.
package prefix

import (
	"cmp"
	"math"
	"slices"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// Options are the settings of [Plan.Arrange].
type Options struct {
	// MinShared is the least number of shared tokens. Rows with a shorter common prefix are not
	// combined. 0 means 1. Rows that are equal to or a prefix of another row always share.
	MinShared int

	// Budget is the greatest number of tokens in a tree; 0 means no limit. When it is exceeded, a
	// new tree begins, which repeats the tokens that its rows share with earlier rows. A row longer
	// than the budget gets a tree of its own, or shares one with rows that add no token.
	Budget int
}

// Plan describes how a batch is computed: as Rows packed rows of Width tokens, each of which
// holds one or more trees.
type Plan struct {
	// Rows and Width are the shape of the packed batch.
	Rows, Width int

	// Order holds the indices of the batch's rows, sorted by their tokens. Rows with a common prefix are adjacent.
	Order []int64

	// Shared[i] is the number of tokens that row Order[i] shares with row Order[i-1]; 0 if a tree begins.
	Shared []int64

	// Start[i] is the position in the packed batch of the tree that begins at i, counted through the
	// packed rows. It is meaningless if no tree begins at i.
	Start []int64

	trees []tree
}

// tree is a range of Order.
type tree struct{ begin, tokens int64 }

// Arrange plans a batch.
//
// ids holds len(lengths) rows of width tokens, padded on the right. Row i has lengths[i] tokens,
// from 1 to width.
//
// Errors, each a *pcrm.ArgumentError: a length out of range; an ids slice of the wrong size;
// a negative option.
func (p *Plan) Arrange(ids []int64, width int, lengths []int64, o Options) error {
	if err := check(ids, width, lengths, o); err != nil {
		return err
	}
	n := len(lengths)
	p.Order, p.Shared, p.Start = resize(p.Order, n), resize(p.Shared, n), resize(p.Start, n)
	p.Rows, p.Width, p.trees = 0, 0, p.trees[:0]
	if n == 0 {
		return nil
	}
	for i := range p.Order {
		p.Order[i] = int64(i)
	}
	b := batch{ids, int64(width), lengths}
	p.Shared[0] = 0
	b.sort(p.Order, p.Shared, 0)
	p.plant(b, o)
	p.place()
	return nil
}

func check(ids []int64, width int, lengths []int64, o Options) error {
	switch {
	case width < 0 || len(ids) != width*len(lengths):
		return argument.Errorf("ids", -1, "must have %d rows of %d tokens, got %d tokens", len(lengths), width, len(ids))
	case o.MinShared < 0:
		return argument.Errorf("min_shared", -1, "must be at least 0, got %d", o.MinShared)
	case o.Budget < 0:
		return argument.Errorf("budget", -1, "must be at least 0, got %d", o.Budget)
	}
	for i, length := range lengths {
		if length < 1 || length > int64(width) {
			return argument.Errorf("lengths", i, "must be in [1, %d], got %d", width, length)
		}
	}
	return nil
}

func resize[T any](x []T, n int) []T {
	return slices.Grow(x[:0], n)[:n]
}

type batch struct {
	ids     []int64
	width   int64
	lengths []int64
}

func (b batch) row(r int64) []int64 {
	return b.ids[r*b.width:][:b.lengths[r]]
}

// next returns the token of a row at a depth, or a value less than any token at the end of the row.
func (b batch) next(r, depth int64) int64 {
	if depth == b.lengths[r] {
		return math.MinInt64
	}
	return b.ids[r*b.width+depth]
}

// sort sorts rows that agree in their first depth tokens. For each row but the first it writes
// the length of the common prefix with the row before. Each token is read twice, and rows are
// compared by the single token at which they differ.
func (b batch) sort(order, shared []int64, depth int64) {
	for len(order) > 1 {
		depth = b.common(order, depth)
		slices.SortFunc(order, func(x, y int64) int {
			return cmp.Or(cmp.Compare(b.next(x, depth), b.next(y, depth)), cmp.Compare(x, y))
		})
		begin := 0
		for i := 1; i < len(order); i++ {
			if b.next(order[i], depth) == b.next(order[begin], depth) {
				continue
			}
			b.below(order[begin:i], shared[begin:i], depth)
			shared[i] = depth
			begin = i
		}
		if begin == 0 { // all rows end here
			b.below(order, shared, depth)
			return
		}
		// The last branch continues in this loop. With a call instead, a chain of rows that are
		// prefixes of each other would nest calls as deep as the chain is long.
		order, shared, depth = order[begin:], shared[begin:], depth+1
	}
}

// below continues with rows that have the same token at a depth, or that all end there.
func (b batch) below(order, shared []int64, depth int64) {
	if depth < b.lengths[order[0]] {
		b.sort(order, shared, depth+1)
		return
	}
	for i := 1; i < len(order); i++ {
		shared[i] = depth
	}
}

// common returns the length of the common prefix of the rows, which is at least depth.
func (b batch) common(order []int64, depth int64) int64 {
	first := b.row(order[0])
	end := int64(len(first))
	for _, r := range order[1:] {
		row := b.row(r)
		end = min(end, int64(len(row)))
		i := depth
		for i < end && row[i] == first[i] {
			i++
		}
		end = i
	}
	return end
}

// plant divides the sorted rows into trees.
func (p *Plan) plant(b batch, o Options) {
	least := int64(max(o.MinShared, 1))
	for i, r := range p.Order {
		length := b.lengths[r]
		added := length - p.Shared[i]
		if i > 0 && (added == 0 || p.Shared[i] == b.lengths[p.Order[i-1]] || p.Shared[i] >= least) {
			last := &p.trees[len(p.trees)-1]
			if added == 0 || o.Budget == 0 || last.tokens+added <= int64(o.Budget) {
				last.tokens += added
				continue
			}
		}
		p.Shared[i] = 0
		p.trees = append(p.trees, tree{int64(i), length})
	}
}

// place puts the trees into packed rows that are as wide as the largest tree. Each packed row
// gets the largest remaining tree and as many of the smallest ones as fit.
func (p *Plan) place() {
	slices.SortFunc(p.trees, func(x, y tree) int {
		return cmp.Or(cmp.Compare(y.tokens, x.tokens), cmp.Compare(x.begin, y.begin))
	})
	width := p.trees[0].tokens
	for low, high := 0, len(p.trees)-1; low <= high; low++ {
		at := int64(p.Rows) * width
		end := at + width
		p.Start[p.trees[low].begin] = at
		at += p.trees[low].tokens
		for ; high > low && at+p.trees[high].tokens <= end; high-- {
			p.Start[p.trees[high].begin] = at
			at += p.trees[high].tokens
		}
		p.Rows++
	}
	p.Width = int(width)
}

// Pack writes the packed batch. The plan must come from Arrange for the same rows. Pack fills
// four destinations of these sizes:
//
//	packed     Rows*Width   the tokens; 0 in unused places
//	positions  Rows*Width   the position of each token in its row; 0 in unused places
//	ends       Rows*Width   tokens from k up to but not including ends[k], counted in their packed
//	                        row, attend to token k; an unused place attends only to itself
//	gather     len(ids)     the index in packed of each token of the batch; for padding, that of
//	                        the last token of its row
//
// Errors, each a *pcrm.ArgumentError: a destination of another size; rows of other lengths
// than those of the plan; the errors of Arrange for ids and lengths.
func (p *Plan) Pack(packed, positions, ends, gather, ids []int64, width int, lengths []int64) error {
	if err := check(ids, width, lengths, Options{}); err != nil {
		return err
	}
	if len(lengths) != len(p.Order) {
		return argument.Errorf("lengths", -1, "must have %d elements, like the plan, got %d", len(p.Order), len(lengths))
	}
	for _, x := range []struct {
		name  string
		slice []int64
		size  int
	}{
		{"packed", packed, p.Rows * p.Width}, {"positions", positions, p.Rows * p.Width},
		{"ends", ends, p.Rows * p.Width}, {"gather", gather, len(ids)},
	} {
		if len(x.slice) != x.size {
			return argument.Errorf(x.name, -1, "must have %d elements, got %d", x.size, len(x.slice))
		}
	}
	clear(packed)
	clear(positions)
	for k := range ends {
		ends[k] = int64(k%p.Width) + 1
	}
	w := int64(p.Width)
	var path []int64 // the indices of the tokens of the previous row
	var at int64     // the index of the next token
	// shut sets the ends of the tokens of the path from a depth onwards, which have no further descendants.
	shut := func(depth int64) {
		for _, k := range path[depth:] {
			ends[k] = (at-1)%w + 1
		}
	}
	for i, r := range p.Order {
		shared := p.Shared[i]
		if shared > min(int64(len(path)), lengths[r]) {
			return argument.Errorf("lengths", int(r), "must be the length that the plan was made for, got %d", lengths[r])
		}
		if path != nil {
			shut(shared)
		}
		if shared == 0 {
			at = p.Start[i]
		}
		row, to := ids[int(r)*width:][:lengths[r]], gather[int(r)*width:][:width]
		copy(to, path[:shared])
		if at+int64(len(row))-shared > int64(len(packed)) {
			return argument.Errorf("lengths", int(r), "must be the length that the plan was made for, got %d", lengths[r])
		}
		for depth := shared; depth < int64(len(row)); depth++ {
			packed[at], positions[at], to[depth] = row[depth], depth, at
			at++
		}
		path = to[:len(row)]
		for k := len(row); k < width; k++ {
			to[k] = path[len(row)-1]
		}
	}
	if path != nil {
		shut(0)
	}
	return nil
}
