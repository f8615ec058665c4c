// Package prefix plans how the rows of a batch go through a causal language model so that
// tokens which rows begin with in common are computed once.
//
// Rows that begin alike form a tree: a path from its root is a row, and a token that several
// rows share stands once. The tree's tokens are laid out in depth-first order, so that the
// tokens below a token follow it without a gap. Where they end says all that attention needs:
//
//	token q attends to token k  if and only if  k <= q < ends[k]
//
// A token then sees those of its row before it, and itself, as in a causal model of the row alone.
//
// [Plan.Arrange] sorts the rows and decides which share. [Plan.Pack] writes the tokens, their
// positions, ends, and for each token of the batch where it was computed. Both are linear in the
// tokens, but for sorting at branches, and allocate nothing once a Plan is large enough.
package prefix

import (
	"cmp"
	"math"
	"slices"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// Options say what is shared.
type Options struct {
	// MinShared is the least number of tokens worth sharing: rows that begin with fewer in common
	// stay apart. 0 means 1. Rows that are equal, or begin others, always share.
	MinShared int

	// Budget is the greatest number of tokens in a tree; 0 means no limit. Beyond it another tree
	// begins, which repeats what its rows share with those before. A row that is longer has a tree
	// of its own, or shares one with rows that add no token.
	Budget int
}

// Plan says how a batch is computed: as Rows packed rows of Width tokens, which hold one or
// more trees each.
type Plan struct {
	// Rows and Width are the shape of the packed batch.
	Rows, Width int

	// Order holds the batch's rows in the order of their tokens: rows that begin alike are neighbors.
	Order []int64

	// Shared[i] is how many tokens of row Order[i] are computed with row Order[i-1]; 0 where a tree begins.
	Shared []int64

	// Start[i] is where the tree that begins at i lies in the packed batch, counted through its rows.
	// Where none begins it means nothing.
	Start []int64

	trees []tree
}

// tree is a range of Order.
type tree struct{ begin, tokens int64 }

// Arrange makes the plan of a batch.
//
// ids holds a row of width tokens for each of lengths, padded on the right; row i has lengths[i]
// tokens, from 1 to width.
//
// Errors, each an [*pcrm.ArgumentError]: a length out of its range, sizes that do not fit,
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

// next is the token of a row at a depth. Where it ends that is less than any token.
func (b batch) next(r, depth int64) int64 {
	if depth == b.lengths[r] {
		return math.MinInt64
	}
	return b.ids[r*b.width+depth]
}

// sort orders rows that agree in their first depth tokens, and writes what each but the first
// has in common with the one before it. Each token is looked at twice, and rows are compared by
// one token where they part.
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
		if begin == 0 { // all of them end here
			b.below(order, shared, depth)
			return
		}
		// The last branch goes on in this loop: a call each would nest as deep as a chain of rows is
		// long that begin one another.
		order, shared, depth = order[begin:], shared[begin:], depth+1
	}
}

// below goes on with rows that have the same token at a depth, or all end there.
func (b batch) below(order, shared []int64, depth int64) {
	if depth < b.lengths[order[0]] {
		b.sort(order, shared, depth+1)
		return
	}
	for i := 1; i < len(order); i++ {
		shared[i] = depth
	}
}

// common is how many tokens all of the rows begin with, of which depth are known to be.
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

// plant cuts the sorted rows into trees.
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

// place puts the trees into packed rows as wide as the largest: the largest that is left, and
// beside it as many of the smallest as there is room for.
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

// Pack writes the packed batch of the plan, which Arrange made for the same rows. The four have
// to hold:
//
//	packed     Rows*Width   the tokens; 0 where there is none
//	positions  Rows*Width   of each token in its row; 0 where there is none
//	ends       Rows*Width   the token at k, counted in its packed row, is attended to from k up to and
//	                        not including ends[k]; where there is none that is k alone
//	gather     len(ids)     for each token of the batch where it stands in packed; for padding,
//	                        where the last token of its row does
//
// Errors, each an [*pcrm.ArgumentError]: a size that is another, rows of other lengths than the plan's.
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
	var path []int64 // where the tokens of the row before stand
	var at int64     // where the next token goes
	// shut ends the tokens of the path from a depth on: no later one is below them.
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
