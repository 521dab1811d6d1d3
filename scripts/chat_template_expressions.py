#!/usr/bin/env python3
"""Write what transformers' template environment makes of small templates.

    scripts/chat_template_expressions.py tests/fixtures/chat_templates/expressions.json

The answers come from transformers' own _compile_jinja_template. The file holds the context, and for each template its text or the type of its
error. Results that depend on the machine are left out: addresses, the clock, random choices, the order of sets.
Needs: pip install transformers==5.24.0 jinja2==3.1.6 (no torch). Exit status: 0 written, 1 could not.
"""
import json
import platform
import re
import sys
import warnings
from pathlib import Path

CONTEXT = {
    "messages": [
        {"role": "system", "content": "You are a helper."},
        {"role": "user", "content": "What is <b> & \"c\"?\n  Second line\n\nFourth\u2028end"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "call_1", "type": "function",
             "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 3, "metric": True}}},
            {"id": "call_2", "type": "function",
             "function": {"name": "clock", "arguments": "{\"zone\": \"UTC\"}"}}]},
        {"role": "tool", "name": "weather", "tool_call_id": "call_1", "content": "12.5"},
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "image"},
                                     {"type": "text", "text": "this?"}]},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt rains.", "reasoning_content": "hm"},
    ],
    "tools": [
        {"type": "function", "function": {
            "name": "weather", "description": "Says the weather's state <b>", "parameters": {
                "type": "object", "required": ["city"], "properties": {
                    "city": {"type": "string", "description": "A city"},
                    "days": {"type": "integer", "default": None, "enum": [1, 2, 3]},
                    "metric": {"type": "boolean", "default": True}}}}},
        {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
    ],
    "documents": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "yes": True,
    "no": False,
    "nothing": None,
    "zero": 0,
    "one": 1,
    "seven": 7,
    "minus": -7,
    "large": 9007199254740993,
    "half": 0.5,
    "third": 0.1,
    "negative": -2.5,
    "whole": 3.0,
    "tiny": 1e-7,
    "huge": 1e22,
    "empty": "",
    "word": "hello",
    "text": "  Hello World, it's FINE  ",
    "lines": "one\ntwo\r\nthree\n\n four",
    "unicode": "Größe ǆ ﬁn İ ß 你好 é 👍",
    "quotes": "it's \"so\" \\ \t\x01\x7f",
    "both": "a'b\"c",
    "html": "<a href=\"x\">T & 'u'</a>",
    "nested": {"b": {"y": [1, 2, {"z": None}], "x": "ä"}, "a": [True, 1.5, "t"], "B": -1},
    "flat": {"k1": "v1", "k2": 2, "k3": 3.0},
    "keys": {"items": "I", "keys": 1, "get": "G", "1": "one", "": "blank"},
    "list": [3, 1, 2],
    "letters": ["b", "A", "c", "a", "B"],
    "mixed": [1, "a", None, True, 2.5, [1], {"k": 1}],
    "people": [{"name": "Ann", "age": 30, "town": {"zip": 1}}, {"name": "bob", "age": 25, "town": {"zip": 2}},
               {"name": "Cy", "age": 30, "town": {"zip": 1}}],
    "rows": [[1, "a"], [2, "b"]],
    "void": [],
    "blank": {},
}

# one expression a line, printed by {{ }}
EXPRESSIONS = {
    "literals and printing": r"""
none
None
true
True
false
False
1
-1
+1
1_000
0x1F
0b101
0o17
1.0
1.5e3
1e20
1e16
1e15
123456789.123456789
0.0001
0.00001
1e-5
1.0e100
-0.0
1e400
-1e400
100000000000000000000
9007199254740993
large
huge
tiny
third + 0.2
''
"a'b"
'a"b'
'a' 'b'
'\n'
'\t'
'\x41'
'\u00e9'
'\\'
'\''
'\q'
'\101'
'\N{BULLET}'
[]
[1, 'a', none, true, 1.5]
[1,]
()
(1,)
(1, 2)
(1)
1, 2
'a', none
{}
{'a': 1, 'b': [2, {'c': none}]}
{'a': 1,}
{1: 2, none: 3, true: 4}
{1: 'a', 1.0: 'b', true: 'c'}
{(1, 2): 3}
{[1]: 2}
['it\'s']
['"']
['\'"']
['\n\t\\\x01\x7f\xa0é\u200b\u2028👍']
[quotes]
[both]
[unicode]
[1.0, 1e16, 1e-5, 1e400]
nested
flat
mixed
messages[0]
messages[2].tool_calls
yes
no
nothing
[yes, nothing]
range(3)
range(1, 10, 3)
range(3)|list
range(5, 0, -2)|list
range(0)|list
range(2) == range(2)
range(1000000)
range(100001)
range(99999)|length
range('a')
range(1.5)
range()
range(0, 10, 0)
dict(a=1, b='x')
dict([['a', 1], ('b', 2)])
dict({'a': 1}, b=2)
dict(1)
dict.fromkeys(['a', 'b'], 0)
namespace(a=1).a
namespace({'a': 2}).a
namespace(_a=1)
namespace().x
lipsum is defined
cycler('a', 'b').next()
cycler('a', 'b').current
cycler()
joiner(',')()
undefined_name
[undefined_name]
undefined_name.attribute
undefined_name['item']
undefined_name()
undefined_name + 1
1 + undefined_name
undefined_name == undefined_name
undefined_name == none
undefined_name|length
undefined_name|list
undefined_name|string
undefined_name|upper
undefined_name ~ 'x'
undefined_name is defined
undefined_name and 1
undefined_name or 1
not undefined_name
undefined_name in 'abc'
'a' in undefined_name
undefined_name|int
undefined_name|float
undefined_name|tojson
undefined_name < 1
-undefined_name
messages[99]
messages[99].role
messages.nothing
messages[0].nothing
messages[0].nothing.more
messages[0]['nothing'] is defined
nested.b.y[2].z
nested['b']['x']
nested.nothing|default('d')
nothing.attribute
nothing['x']
(1).real
1.5.real
'abc'.nothing
'abc'[0]
'abc'[-1]
'abc'[5]
'abc'[5] is defined
'abc'['x']
list[0]
list['0']
list.0
rows.1.1
list[-1]
list[1.0]
list[true]
keys.items
keys['items']
keys.get
keys.keys
keys.values()|list
keys[1]
keys['1']
keys['']
flat.items
flat.__class__
''.__class__
(1).__class__
list.append
list.append(1)
flat.update({'a': 1})
flat.pop('k1')
list.sort()
list.clear()
flat.setdefault('k1', 1)
'a'.format
raise_exception('stop')
raise_exception()
self is defined
loop is defined
varargs is defined
caller is defined
""",
    "arithmetic": r"""
1 + 2
1 - 2
2 * 3
7 / 2
6 / 2
7 // 2
minus // 2
7 // -2
minus % 3
7 % -3
7.5 // 2
-7.5 // 2
7.5 % 2
-7.5 % 2
7.5 % -2
-1 % 0.3
2 ** 10
2 ** -1
2 ** 0.5
(-2) ** 3
-2 ** 2
2 ** 3 ** 2
(-8) ** 0.5
10 ** 30
2 ** 64
2 ** 63
9223372036854775807 + 1
-9223372036854775808 - 1
9223372036854775807 * 2
large * large
large + 0.0
large / 1
1 / 0
1 // 0
1 % 0
1.0 / 0
0 ** -1
0 ** 0
0.1 + 0.2
1 / 3
2 / 3
100 / 3
1e308 * 10
1e308 * 10 - 1e308 * 10
5 - 3 - 1
2 + 3 * 4
(2 + 3) * 4
10 / 2 / 5
2 * 3 % 4
-seven
+seven
--seven
- 'a'
not 1
not not 1
true + true
true * 3
true / 2
-true
none + 1
'a' + 'b'
'a' + 1
1 + 'a'
'a' * 3
3 * 'a'
'a' * -1
'a' * 1.5
[1] + [2]
[1] * 2
[1] + (2,)
(1,) + (2,)
{} + {}
'a' - 'b'
[1] - [1]
'a' ~ 1
1 ~ 2
none ~ true
1.0 ~ [1] ~ {'a': 1}
'a' ~ 'b' * 2
1 + 2 ~ 3
'%s' % 'a'
'%s-%d' % ('a', 3)
'%.2f' % 1.5
'%5d|' % 42
'%-5d|' % 42
'%05d|' % 42
'%+d' % 42
'% d' % 42
'%x %X %o' % (255, 255, 8)
'%#x %#o' % (255, 8)
'%e' % 12345.678
'%g' % 0.00001234
'%g' % 1e20
'%G' % 1e-10
'%.3s|' % 'abcdef'
'%10s|' % 'abc'
'%-10s|' % 'abc'
'%r' % 'a'
'%a' % 'é'
'%c' % 65
'%c' % 'z'
'%%' % ()
'%d%%' % 5
'%(a)s %(b)d' % {'a': 'x', 'b': 2}
'%s' % none
'%s' % ([1, 'a'],)
'%s' % {'a': 1}
'%s %s' % 'a'
'%s' % ('a', 'b')
'%d' % 'a'
'%d' % 1.9
'%i' % true
'%f' % 1
'%.0f' % 2.5
'%.0f' % 0.5
'%*d' % (5, 42)
'%q' % 1
'%' % 1
'a' % 1
'a' % ()
1 == 1.0
1 == true
1 == '1'
none == false
'a' < 'b'
'a' < 'B'
'a' < 1
1 < 2 < 3
1 < 3 < 2
3 > 2 > 1 == 1
1 < 2 == true
1 == 1 != 2
[1, 2] < [1, 3]
[1, 2] == [1, 2]
(1, 2) == [1, 2]
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
{'a': 1} < {'b': 1}
none < 1
1.5 >= 1
9007199254740993 == 9007199254740992.0
large == 9007199254740992
1 in [1, 2]
1.0 in [1, 2]
true in [1]
'1' in [1]
'a' in 'abc'
'' in 'abc'
1 in 'abc'
'k1' in flat
'v1' in flat
none in [none]
1 in 5
1 not in [1]
not 1 in [1]
not 1 == 2
1 in [1] == true
1 and 2
0 and 2
1 or 2
0 or ''
'' or 'x'
[] or none
none and 1
1 and 0 or 3
1 or 0 and 3
not 1 or 1
1 if true else 2
1 if false else 2
1 if false
(1 if false) is defined
1 if 0 else 2 if 0 else 3
'a' if word == 'hello' and not no else 'b'
1 if [] else 2
1 if {} else 2
1 if '' else 2
1 if 0.0 else 2
1 if '0' else 2
""",
    "slices": r"""
list[1:]
list[:1]
list[:]
list[::-1]
list[-2:]
list[:-1]
list[::2]
list[1::2]
list[2:0:-1]
list[-1:-3:-1]
list[5:]
list[-10:10]
list[::0]
list[none:2]
list[1:none:none]
list['a':]
list[1.0:]
word[1:3]
word[::-1]
word[-3:]
word[::2]
word[4:1:-1]
word[:-1]
word[10:]
unicode[0:3]
unicode[-2:]
unicode[::-1]
(1, 2, 3)[1:]
(1, 2, 3)[::-1]
range(10)[2:5]
range(10)[::3]|list
flat[1:]
messages[1:]|length
messages[:2]|map(attribute='role')|list
messages[-1:][0].role
messages[::-1]|map(attribute='role')|join(',')
5[1:]
nothing[1:]
undefined_name[1:]
list[1:][0]
'abc'[1:] ~ 'x'
""",
    "strings": r"""
text.strip()
text.lstrip() ~ '|'
text.rstrip() ~ '|'
'xxaxx'.strip('x')
'xyaxy'.strip('yx')
'xxaxx'.lstrip('x')
'xxaxx'.rstrip('x')
'xxaxx'.strip('')
'xxaxx'.strip(none)
'xxaxx'.strip(1)
'\x1cx\x1f'.strip()
'\u2003x\u00a0\u3000'.strip()
'\u200bx'.strip()|length
'a,b,,c'.split(',')
'a,b,,c'.split(',', 1)
'a,b,,c'.split(',', maxsplit=2)
'a,b,,c'.split(sep=',')
'  a  b c '.split()
'  a  b c '.split(none, 1)
'  a  b c '.split(' ')
'abc'.split('')
''.split()
''.split(',')
'a<>b<>c'.split('<>')
'a-b-c'.rsplit('-', 1)
'a-b-c'.rsplit('-')
'  a  b c '.rsplit(none, 1)
' a b '.rsplit()
'a-b-c'.split('-', -1)
'a-b-c'.split('-', 0)
'a\x1cb\u2003c'.split()
lines.splitlines()
lines.splitlines(true)
lines.splitlines(keepends=true)
'a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g'.splitlines()
'a\n'.splitlines()
'\n'.splitlines()
''.splitlines()
'a-b-c'.partition('-')
'a-b-c'.rpartition('-')
'abc'.partition('-')
'abc'.rpartition('-')
'abc'.partition('')
word.find('l')
word.find('z')
word.find('l', 3)
word.find('l', 0, 2)
word.find('l', -2)
word.find('')
word.rfind('l')
word.index('l')
word.index('z')
word.rindex('l')
unicode.find('你')
word.count('l')
word.count('')
'aaaa'.count('aa')
word.count('l', 3)
word.replace('l', 'L')
word.replace('l', 'L', 1)
word.replace('', '-')
word.replace('l', 'L', 0)
word.replace('l', 'L', -1)
word.replace('l')
word.replace('l', 1)
word.startswith('he')
word.startswith('lo')
word.startswith('l', 2)
word.startswith('')
word.startswith(('x', 'h'))
word.startswith(['h'])
word.endswith('lo')
word.endswith(('x', 'lo'))
word.endswith('l', 0, 4)
word.startswith(1)
text.upper()
text.lower()
text.title()
text.capitalize()
text.swapcase()
text.casefold()
unicode.upper()
unicode.lower()
unicode.title()
unicode.capitalize()
unicode.swapcase()
unicode.casefold()
'they\'re bill\'s'.title()
'ǆ'.title()
'x1y a-b_c'.title()
'ΑΣ ΑΣΑ Σ'.lower()
'ŉ'.upper()
'ﬃ'.capitalize()
'a'.center(4) ~ '|'
'a'.center(5, '*')
'ab'.center(5, '*')
'ab'.center(1)
'a'.center(5, '**')
'a'.ljust(3) ~ '|'
'a'.ljust(3, '.')
'a'.rjust(3)
'a'.rjust(3, '0')
'5'.zfill(3)
'-5'.zfill(4)
'+5'.zfill(4)
'abc'.zfill(2)
''.zfill(2)
'ab'.removeprefix('a')
'ab'.removeprefix('b')
'ab'.removesuffix('b')
'ab'.removesuffix('')
'a\tb'.expandtabs()
'a\tb'.expandtabs(4)
'ab\n\tc'.expandtabs(3)
'12'.isdigit()
'²'.isdigit()
'²'.isdecimal()
'²'.isnumeric()
'½'.isnumeric()
'½'.isdigit()
'٣'.isdecimal()
''.isdigit()
'a1'.isalnum()
'a b'.isalnum()
'é你'.isalpha()
'a1'.isalpha()
''.isalpha()
' \t\n'.isspace()
''.isspace()
'\u200b'.isspace()
'\x1c'.isspace()
'abc'.islower()
'abC'.islower()
'1'.islower()
'a1'.islower()
'ABC'.isupper()
'A1'.isupper()
'Ab Cd'.istitle()
'AB'.istitle()
'a_1'.isidentifier()
'1a'.isidentifier()
'abc'.isascii()
'é'.isascii()
''.isascii()
'a\n'.isprintable()
'é '.isprintable()
','.join(['a', 'b'])
','.join('abc')
','.join([])
','.join([1])
','.join(flat)
','.join(('a', 'b'))
'{} {}'.format('a', 1)
'{0} {1} {0}'.format('a', 1)
'{a} {b}'.format(a='x', b=none)
'{:>5}|{:<5}|{:^5}|'.format('a', 'b', 'c')
'{:*^7}'.format('ab')
'{:05d}'.format(42)
'{:+d}'.format(42)
'{:,}'.format(1234567)
'{:_}'.format(1234567)
'{:.2f}'.format(1.005)
'{:.3}'.format('abcdef')
'{:.3}'.format(1234.5)
'{:x} {:X} {:b} {:o} {:#x}'.format(255, 255, 5, 8, 255)
'{:e}'.format(12345.678)
'{:g}'.format(0.00001)
'{:%}'.format(0.25)
'{:.1%}'.format(0.256)
'{!r}'.format('a')
'{!s:>4}'.format('a')
'{0[0]} {1[k1]}'.format(list, flat)
'{0.real}'.format(1)
'{{}}'.format()
'{}'.format()
'{'.format()
'}'.format()
'{x}'.format(a=1)
'{:d}'.format('a')
'{:c}'.format(65)
'{:>{}}'.format('a', 4)
'{0.__class__}'.format('a')
'{a}'.format_map({'a': 1})
'{}'.format(1.0)
'{}'.format([1, 'a'])
'{:5}|'.format(true)
'{:5}|'.format(1)
'{:<5}|'.format(1)
'{:n}'.format(5)
'a'.encode()
'é'.encode()
'é'.encode('utf-8')
'é'.encode('ascii')
'é'.encode('utf-8').decode('utf-8')
'abc'.translate({97: 'x'})
'a'.nothing()
'a' 'b'.upper()
'a'.upper().lower().strip('a')|length
word.upper
word.strip(chars='h')
word.upper(1)
'a' is string and 'a'.isalpha()
'a\r\nb'.replace('\r\n', '\n')
'\u0130'.lower()|length
""",
    "lists and dictionaries": r"""
flat.items()
flat.keys()
flat.values()
flat.items()|list
flat.keys()|list
flat.values()|list
flat.items()|first
flat.keys()|join(',')
flat.get('k1')
flat.get('x')
flat.get('x', 'd')
flat.get('x', default='d')
flat.get()
flat.copy()
flat.k2
flat|length
flat|list
flat|first
flat|last
flat == flat.copy()
flat.items()|length
flat.keys()|length
('k2', 2) in flat.items()
2 in flat.values()
flat.keys() == flat.keys()
list.index(2)
list.index(9)
list.index(1, 1)
list.count(1)
list.copy()
list.append
list.insert(0, 1)
list.extend([1])
list.pop()
list.pop(0)
list.remove(1)
list.reverse()
(1, 2, 1).count(1)
(1, 2, 1).index(2)
(3).bit_length()
(1.5).is_integer()
(2.0).is_integer()
(5).nothing
nested.a[1]
nested.b.y[2]
nested.b['y'][0]
nested['a'][-1]
nested|length
nested.keys()|sort
nested.items()|sort|first
nested.get('b').get('x')
nested.get('b', {}).get('q', {}).get('z', 1)
messages[2].tool_calls[0].function.arguments.city
messages[2]['tool_calls'][1]['function']['arguments']
messages[4].content[0].text
messages[4].content[1].text is defined
messages[0].keys()|list
messages[0].items()|list
tools[0].function.parameters.properties.items()|list|length
""",
    "filters": r"""
-5|abs
minus|abs
negative|abs
true|abs
'a'|abs
flat|attr('k1')
flat|attr('items')
word|attr('upper')
word|attr('nothing')
word|attr('__class__')
range(7)|batch(3)|list
range(7)|batch(3, 'x')|list
[]|batch(3)|list
range(4)|batch(0)|list
word|batch(2)|list
range(4)|batch(2)
'hELLO wORLD'|capitalize
unicode|capitalize
5|capitalize
''|capitalize
'x'|center(5) ~ '|'
'x'|center(4) ~ '|'
'x'|center ~ '|'
'x'|center(width=3) ~ '|'
word|count
list|count
flat|count
unicode|count
5|count
none|count
undefined_name|default
undefined_name|default('d')
undefined_name|d('d')
none|default('d')
none|default('d', true)
''|default('d')
''|default('d', boolean=true)
0|default('d', true)
word|default(default_value='d')
flat|dictsort
flat|dictsort(reverse=true)
{'b': 1, 'A': 2, 'a': 0}|dictsort
{'b': 1, 'A': 2, 'a': 0}|dictsort(true)
{'b': 'x', 'A': 'Y', 'a': 'a'}|dictsort(by='value')
{'b': 1, 'A': 2}|dictsort(false, 'value')
{'b': 1}|dictsort(by='x')
{'b': 1, 2: 3}|dictsort
list|dictsort
html|e
html|escape
html|escape|escape
html|e ~ '<'
'<' ~ html|e
html|e + '<'
(html|e)|length
(html|e).upper()
[html|e]
html|safe ~ '<'
html|safe|e
html|forceescape
html|safe|forceescape
5|escape
none|escape
list|escape
both|escape
html|escape is escaped
html is escaped
html|e == html
'<' in html|e
(html|e)|string is escaped
html|e|tojson
'%s' % (html|e)
(html|e) % ()
'<%s>'|e|format('<')
'a'|safe + '<'
('<'|e)[0]
('<'|e).split('l')
('<'|e).join(['<', '>'])
('<'|e).format('<')
('{}'|safe).format('<')
'<'|e * 2
10|filesizeformat
1|filesizeformat
0|filesizeformat
1000|filesizeformat
1500|filesizeformat
1234567|filesizeformat
1234567|filesizeformat(true)
1e30|filesizeformat
1023|filesizeformat(binary=true)
'1000'|filesizeformat
-1|filesizeformat
'x'|filesizeformat
list|first
word|first
flat|first
[]|first
[]|first is defined
5|first
none|first
list|last
word|last
[]|last
flat|last
range(3)|last
5|last
'1.5'|float
'1'|float
'x'|float
'x'|float(2.5)
'x'|float(default='d')
none|float
5|float
true|float
'1e3'|float
'inf'|float
'nan'|float
' 2.5 '|float
'1_0'|float
'１'|float
'0x10'|float
list|float
'%s-%s'|format('a', 1)
'%(a)s'|format(a=1)
'%s'|format
'%s'|format('a', b=1)
'%.1f'|format(2.25)
'%d'|format('x')
people|groupby('age')|list
people|groupby('age')|map(attribute='grouper')|list
people|groupby('town.zip')|map('first')|list
people|groupby('name')|map(attribute=0)|list
people|groupby('name', case_sensitive=true)|map(attribute=0)|list
people|groupby('nothing')|list
people|groupby('nothing', default='d')|map('first')|list
(people|groupby('age')|first).list|length
'a\nb\n\nc'|indent
'a\nb\n\nc'|indent(2)
'a\nb\n\nc'|indent(2, true)
'a\nb\n\nc'|indent(2, first=true, blank=true)
'a\nb\n\nc'|indent(width='>>')
'a\nb\n\nc'|indent('--', true, true)
'a\r\nb'|indent(1)
''|indent
''|indent(2, true)
'a\n'|indent(2) ~ '|'
'a\u2028b\x0bc'|indent(1)
5|indent
5|int
5.9|int
-5.9|int
'5'|int
'5.9'|int
'x'|int
'x'|int(7)
'x'|int(default='d')
none|int
true|int
'0x1F'|int
'0x1F'|int(base=16)
'1F'|int(0, 16)
'0b11'|int(0, 2)
'0o17'|int(0, 8)
'101'|int(0, 2)
'z'|int(0, 36)
' 5 '|int
'1_000'|int
'٣'|int
''|int
1e400|int
'inf'|int
'1e3'|int
list|int
100000000000000000000|int
list|join
list|join(',')
list|join(d=',')
letters|join(', ')
[1, none, true, 1.5]|join('|')
people|join(',', attribute='name')
people|join(',', 'town.zip')
people|join(',', attribute='nothing')
word|join('-')
flat|join(',')
rows|join(',')
[]|join(',')
5|join
none|join
undefined_name|join(',')
['<'|e, '>']|join('<')
['<', '>']|join('<'|e)
list|join(none)
list|join(1)
word|length
unicode|length
'👍🏽'|length
flat|length
range(5)|length
5|length
none|length
(1, 2)|length
messages|length
messages|map(attribute='role')|length
word|list
list|list
flat|list
(1, 2)|list
5|list
none|list
unicode[:4]|list
text|lower
unicode|lower
5|lower
none|lower
'ΑΣ'|lower
flat|items|list
flat|items
undefined_name|items|list
list|items|list
none|items
list|map('string')|list
list|map('string')
list|map('float')|map('int')|list
letters|map('upper')|join
people|map(attribute='name')|list
people|map(attribute='town.zip')|list
people|map(attribute='nothing')|list
people|map(attribute='nothing', default='d')|list
people|map(attribute='town.nothing', default=none)|list
rows|map(attribute=1)|list
rows|map(attribute='1')|list
rows|map('first')|list
rows|map('join', '-')|list
list|map('nothing')|list
list|map|list
list|map(attribute='a', x=1)|list
letters|map('replace', 'a', 'z')|list
5|map('string')|list
none|map('string')|list
list|min
list|max
letters|min
letters|max
letters|min(true)
letters|max(case_sensitive=true)
people|min(attribute='age')
people|max(attribute='age')
people|max(attribute='town.zip')
[]|min
[]|max is defined
word|max
mixed|max
flat|max
list|pprint
nested|pprint
word|pprint
[1.5, none, 'é']|pprint
{'b': 1, 'a': 2}|pprint
messages|pprint
'x'|pprint
range(8)|reject('even')|list
list|reject|list
list|reject('equalto', 1)|list
mixed|reject('none')|list
people|rejectattr('age', 'equalto', 30)|map(attribute='name')|list
people|rejectattr('nothing')|list|length
messages|rejectattr('role', 'equalto', 'user')|map(attribute='role')|list
people|rejectattr('age', 'nothing')|list
word|replace('l', 'L')
word|replace('l', 'L', 1)
word|replace('', '-')
word|replace('l', '')
5|replace(5, 6)
word|replace('l', 1)
html|e|replace('<', '!')
word|replace('l')
word|reverse
list|reverse
list|reverse|list
range(3)|reverse|list
unicode|reverse
flat|reverse|list
5|reverse
1.5|round
2.5|round
-2.5|round
2.675|round(2)
1234.5|round(-2)
1.55|round(1)
2.5|round(0, 'ceil')
2.4|round(method='ceil')
2.45|round(1, 'ceil')
2.5|round(0, 'floor')
-2.5|round(0, 'floor')
-2.45|round(1, 'floor')
5|round
5|round(2)
5|round(-1)
15|round(-1)
5|round(0, 'ceil')
2.5|round(0, 'nothing')
'a'|round
true|round
1e300|round(2)
word|safe
5|safe
none|safe
word|safe is string
range(8)|select('odd')|list
list|select|list
mixed|select('string')|list
mixed|select('number')|list
mixed|select('defined')|list
list|select('gt', 1)|list
list|select('>', 1)|list
list|select('in', [1, 2])|list
list|select('nothing')|list
list|select('odd')
[0, '', none, 1, 'a']|select|list
people|selectattr('age', '==', 30)|map(attribute='name')|list
people|selectattr('town.zip', 'gt', 1)|map(attribute='name')|list
people|selectattr('nothing')|list
people|selectattr('nothing', 'defined')|list
people|selectattr('nothing', 'undefined')|list|length
people|selectattr|list
messages|selectattr('role', 'equalto', 'user')|list|length
messages|selectattr('tool_calls', 'defined')|map(attribute='role')|list
messages|selectattr('content', 'string')|list|length
(messages|selectattr('role', 'equalto', 'user')|first).content|length
range(7)|slice(3)|list
range(7)|slice(3, 'x')|list
range(2)|slice(3)|list
range(2)|slice(0)|list
word|slice(2)|list
list|sort
list|sort(reverse=true)
list|sort(true)
letters|sort
letters|sort(case_sensitive=true)
letters|sort(true, true)
people|sort(attribute='age')|map(attribute='name')|list
people|sort(attribute='age,name')|map(attribute='name')|list
people|sort(attribute='name', reverse=true)|map(attribute='name')|list
people|sort(attribute='town.zip', reverse=true)|map(attribute='name')|list
people|sort(attribute='nothing')|list|length
rows|sort(attribute=1, reverse=true)
mixed|sort
[1, 2.5, true]|sort
[none, 1]|sort
word|sort
flat|sort
[[2, 1], [1, 2]]|sort
['b', 'B', 'a', 'A']|sort
5|sort
5|string
1.0|string
none|string
true|string
list|string
word|string
nested|string
html|string
'<p>x</p>'|striptags
'a <b>b</b>  c\n d'|striptags
'a<!-- x -->b'|striptags
'&lt;a&gt; &amp; &eacute;'|striptags
'a < b'|striptags
5|striptags
list|sum
list|sum(start=10)
people|sum(attribute='age')
people|sum('age', 100)
people|sum(attribute='town.zip')
[]|sum
[0.1, 0.2, 0.3]|sum
letters|sum
[[1], [2]]|sum(start=[])
[true, 1.5]|sum
'hello wORLD'|title
'they\'re bill\'s'|title
'a-b (c) [d] {e} <f>'|title
unicode|title
'x1y 2z'|title
5|title
text|trim ~ '|'
'xxaxx'|trim('x')
'xyaxy'|trim(chars='xy')
'\x1cx\x1f'|trim
'\u00a0x\u2003'|trim
5|trim
none|trim
word|trim('')
'hello world foo bar'|truncate(9)
'hello world foo bar'|truncate(9, true)
'hello world foo bar'|truncate(11, false, '..')
'hello world foo bar'|truncate(11, true, '..', 0)
'hello world foo bar'|truncate(9, leeway=0)
'hello world foo bar'|truncate(9, leeway=0, end='')
word|truncate(3)
word|truncate(3, true)
word|truncate(3, true, '...', 0)
word|truncate(2, leeway=0)
word|truncate
['b', 'a', 'B', 'b']|unique|list
['b', 'a', 'B', 'b']|unique(true)|list
['b', 'a', 'B', 'b']|unique(case_sensitive=true)|list
[1, 1.0, true, '1']|unique|list
people|unique(attribute='age')|map(attribute='name')|list
people|unique(attribute='town.zip')|list|length
[[1], [1]]|unique|list
[none, none]|unique|list
list|unique
word|unique|list
text|upper
unicode|upper
5|upper
none|upper
'é'|urlencode
'a b&c=d/e?f'|urlencode
{'a': 1, 'b c': 'é/'}|urlencode
[('a', 1), ('b', 'x y')]|urlencode
rows|urlencode
5|urlencode
none|urlencode
'~._-'|urlencode
'see https://example.com/a?b=c.'|urlize
'see www.example.com'|urlize
'mail me@example.com'|urlize
'see https://example.com/aaaaaaaaaa'|urlize(10)
'see https://example.com'|urlize(nofollow=true)
'see https://example.com'|urlize(target='_blank')
'a b c'|wordcount
"it's a-b, c"|wordcount
''|wordcount
unicode|wordcount
5|wordcount
'hello world foo bar'|wordwrap(10)
'hello world foo bar'|wordwrap(5)
'hello world'|wordwrap(3)
'hello world'|wordwrap(3, false)
'hello world foo'|wordwrap(8, wrapstring='|')
'a-b-c-d-e-f'|wordwrap(4)
'a-b-c-d-e-f'|wordwrap(4, break_on_hyphens=false)
'a\nb c d'|wordwrap(3)
word|wordwrap
{'a': 1, 'b': none, 'c': '<"'}|xmlattr
{'a': 1}|xmlattr(false)
{'a b': 1}|xmlattr
{}|xmlattr
{'a': undefined_name, 'x': true}|xmlattr
word|nothing
word|upper|lower|title
word|upper()|length
(word|upper)[0]
word|upper ~ 'x'|upper
-1|abs
1 + 2|string
'a'|upper + 'b'
'a' ~ 'b'|upper
not word|length
word|length > 3
word|length is odd
list|first|string + 'x'
'a'|default('x')|upper if yes else 'b'|upper
""",
    "tojson": r"""
nested|tojson
flat|tojson
mixed|tojson
none|tojson
true|tojson
1|tojson
1.0|tojson
-0.0|tojson
1e20|tojson
1e16|tojson
1e15|tojson
1e-7|tojson
0.1|tojson
1e400|tojson
'nan'|float|tojson
123456789012345678901234567890|tojson
large|tojson
word|tojson
quotes|tojson
both|tojson
html|tojson
unicode|tojson
'\x00\x08\x0c\x7f\u2028\ud7ff'|tojson
'/'|tojson
[]|tojson
{}|tojson
()|tojson
(1, 'a')|tojson
[[], {}, [[]]]|tojson(indent=2)
nested|tojson(indent=2)
nested|tojson(indent=4)
nested|tojson(indent=0)
nested|tojson(indent=none)
nested|tojson(indent=-1)
nested|tojson(indent='\t')
nested|tojson(indent='--')
nested|tojson(indent=true)
nested|tojson(indent=2, separators=(',', ':'))
nested|tojson(false, 2)
nested|tojson(true)
nested|tojson(ensure_ascii=true)
nested|tojson(ensure_ascii=false)
unicode|tojson(ensure_ascii=true)
'\x7f'|tojson(ensure_ascii=true)
nested|tojson(sort_keys=true)
{'b': 1, 'a': 2}|tojson(sort_keys=true)
{'b': {'d': 1, 'c': 2}, 'a': [{'f': 1, 'e': 2}]}|tojson(sort_keys=true)
{'b': 1, 'a': [1, 2]}|tojson(separators=(',', ':'))
{'b': 1, 'a': [1, 2]}|tojson(separators=[', ', ' : '])
{'b': 1, 'a': [1, 2]}|tojson(separators=(';',))
{'b': 1}|tojson(separators='ab')
{'b': 1, 'a': [1, 2]}|tojson(separators=none)
{'b': 1}|tojson(nothing=1)
nested|tojson(indent=1, sort_keys=true, ensure_ascii=true, separators=(', ', '='))
{1: 'a', none: 'b', true: 'c', 1.5: 'd'}|tojson
{(1, 2): 3}|tojson
{'b': 1, 2: 3}|tojson(sort_keys=true)
{10: 1, 9: 2}|tojson(sort_keys=true)
messages|tojson
messages[2].tool_calls|tojson
messages[2].tool_calls|tojson(indent=2)
tools|tojson
tools|tojson(indent=4)
tools[0].function.parameters|tojson(sort_keys=true)
range(3)|tojson
flat.items()|tojson
flat.items()|list|tojson
list|map('string')|tojson
list|map('string')|list|tojson
undefined_name|default({})|tojson
namespace(a=1)|tojson
'a'|tojson ~ 'b'
'"'|tojson|length
(nested|tojson)|tojson
nested|tojson|length
nested|tojson|safe == nested|tojson
nested|tojson is string
'<'|tojson|e
""",
    "tests": r"""
1 is odd
2 is odd
2 is even
-1 is odd
1.5 is odd
'a' is odd
10 is divisibleby(5)
10 is divisibleby 5
10 is divisibleby 3
10 is divisibleby(0)
word is defined
undefined_name is defined
undefined_name is not defined
undefined_name is undefined
messages[0].role is defined
messages[0].x is defined
messages[9] is undefined
'upper' is filter
'nothing' is filter
upper is filter
'odd' is test
'nothing' is test
none is none
nothing is none
0 is none
undefined_name is none
word is not none
true is boolean
0 is boolean
none is boolean
false is false
0 is false
true is true
1 is true
1 is integer
true is integer
1.0 is integer
'1' is integer
1.0 is float
1 is float
'abc' is lower
'aBc' is lower
'ABC' is upper
'1' is lower
5 is lower
'a' is string
1 is string
none is string
html|e is string
{} is mapping
[] is mapping
'a' is mapping
messages[0] is mapping
1 is number
1.5 is number
true is number
'1' is number
'a' is sequence
[] is sequence
() is sequence
{} is sequence
1 is sequence
none is sequence
range(3) is sequence
flat.items() is sequence
undefined_name is sequence
list|map('string') is sequence
'a' is iterable
[] is iterable
{} is iterable
1 is iterable
none is iterable
undefined_name is iterable
range(3) is iterable
flat.items() is iterable
raise_exception is callable
range is callable
word is callable
word.upper is callable
undefined_name is callable
1 is sameas 1
none is sameas none
true is sameas(true)
1 is sameas true
1 is sameas 1.0
word is sameas word
list is sameas list
word is escaped
word|safe is escaped
1 is in [1, 2]
'a' is in 'abc'
'a' is in('xyz')
1 is not in [1, 2]
1 is in 5
1 is eq 1
1 is eq(1.0)
1 is equalto 2
1 is == 1
1 is ne 2
1 is != 2
2 is gt 1
2 is greaterthan 1
2 is > 1
1 is ge 1
1 is >= 2
1 is lt 2
1 is lessthan 1
1 is < 2
1 is le 1
1 is <= 0
'a' is lt 1
word is nothing
1 is not odd
not 1 is odd
1 is odd and 2 is even
1 is odd is true
1 + 1 is even
word|length is odd
2 * 3 is eq 6
(1 is odd) is true
1 is odd or 1
word is string is true
1 if 1 is odd else 2
1 is odd()
10 is divisibleby(num=5)
messages is sequence and messages is not string
messages[0].content is string
messages[4].content is iterable and messages[4].content is not mapping
true is sameas yes
nothing is not none
nothing is defined and nothing is none
-1 is lt 0
""",
}

# whole templates
TEMPLATES = {
    "whitespace and text": [
        "", " ", "\n", "a\n", "a\n\n", "a\r\nb\r\n", "a\rb", "\na", "a\u2028b\n", "\ufeffa",
        "{{ 'a' }}\n", "{{ 'a' }}\n\n", "{{ 'a' }} \n b", "{{- 'a' -}}", "  {{- 'a' -}}  b", " \n {{- 'a' }}\n b",
        "a {{- ' b ' -}} c", "a\n{{- '\n' -}}\nb", "{{+ 'a' }}", "{{ 'a' +}}", "x\n  {{+ 'a' }}",
        "{%- if yes -%}\n a \n{%- endif -%}\n", "{% if yes %}\na\n{% endif %}\nb\n", "  {% if yes %}  \n  a\n  {% endif %}  \n  b",
        "x  {% if yes %}\ny{% endif %}", "\t{% if yes %}\n\ta\n\t{% endif %}\n", "  {%+ if yes %}a{% endif %}",
        "  {%+ if yes +%}\n  a{% endif %}\n", "{% if yes +%}\na{% endif %}", "{% if yes -%}  \n\n  a{% endif %}",
        "a  \n{%- if yes %}\nb{% endif %}", "a \n \n {%- if yes %} b {%- endif %} c",
        "{% if yes %}\n\n\na{% endif %}", "{% if yes %} \na{% endif %}", "a\n  {% set x = 1 %}\nb", "a\n  {% set x = 1 %} b",
        "a\n  {% set x = 1 %}{{ x }}\n  {% set y = 2 %}\n{{ y }}", "{% set x = 1 %}\r\nb", "a\r\n  {% set x = 1 %}\r\nb\r\n",
        "\u2003{% set x = 1 %}\na", "\x0b{% set x = 1 %}\na", "a\u00a0{%- set x = 1 -%}\u00a0b", "a\u200b {%- set x = 1 -%} \u200bb",
        "{% if no %}a{% endif %}\n{% if yes %}b{% endif %}\n", "{# c #}\na", "  {# c #}\na", "a {#- c -#} b", "a {#+ c +#}\nb",
        "a\n  {# c #}\nb", "a{# c #}\nb", "a {# {{ x }} {% if %} #} b", "a {# # } #} b", "{# multi\nline #}\nb", "{#-#}a", "{#a", "{##}a",
        "{# {# #} #}", "a #} b", "a }} b", "a %} b", "a }b{ c", "{ {a} }", "{a}", "#}", "a{", "{",
        "{% raw %}{{ a }}{% endraw %}", "{% raw %}\n{% if %}\n{% endraw %}\nb", "a {%- raw -%} {{ x }} {%- endraw -%} b",
        "{% raw %}{% endraw %}", "{% raw %}{# c #}{% endraw %}", "  {% raw %}\n a {% endraw %}\n b", "{% raw %}a", "{%raw%}a{%endraw%}",
        "{% raw -%}\n  a  \n{%- endraw %}", "{%+ raw +%}\n a {%+ endraw +%}\n b", "{% raw x %}{% endraw %}",
        "{{'a'}}{{\"b\"}}", "{{ 'a\nb' }}", "{{ 'a\r\nb' }}|", "{{\n'a'\n}}", "{{ 'a' ", "{{ 'a }}", "{{ }}", "{% %}", "{%%}", "{{{'a':1}}}",
        "{{ {'a':1}.a}}", "{{{'a':1}.a}}", "{{ '}}' }}", "{{ '{{' }}", "{{ \"%}\" }}", "{% set x = '%}' %}{{ x }}", "{{ a $ b }}", "{{ a ? b }}",
        "{{ a b }}", "{{ 1 2 }}", "{{ (1 }}", "{{ 1) }}", "{{ [1 }}", "{{ {1} }}", "{{ 1 + }}", "{{ * 1 }}", "{{ a. }}", "{{ .a }}", "{{ a.'b' }}",
        "{{ a| }}", "{{ |a }}", "{{ a is }}", "{{ a in }}", "{{ not }}", "{{ 'a' if }}", "{{ if }}", "{{ a = 1 }}", "{{ f(a=1, 2) }}", "{{ f(1,, 2) }}",
        "{{ and }}", "{{ a and }}", "{{ a! }}", "{{ a @ b }}", "{{ ä }}", "{% set ä = 1 %}{{ ä }}", "{{ a.b-c }}", "{{ 1.e }}", "{{ 0x }}", "{{ 01 }}", "{{ 1__0 }}", "{{ 1a }}",
        "{% if yes %}{{ 'x' -}}   {% endif %}y", "a {% if yes -%} b {%- else -%} c {%- endif %} d", "line1\n{{ word }}\nline3", "{{ word }}{{ '\n' }}",
        "{{ word }}{{ '\\n' }}", "{%- set x = 1 -%}  {{- x -}}  {%- set y = 2 -%}  {{- y }}", "  {{ word }}  \n  {% if yes %}  \n", "é{{ 'ü' }}你{% if yes %}👍{% endif %}",
        "{%if yes%}a{%endif%}", "{%-if yes-%} a {%-endif-%}", "{% if yes\n%}a{% endif %}", "{% if (yes\n and yes) %}\na\n{% endif %}",
        "{{ word\n| upper }}", "{% set x = [\n 1,\n 2,\n] %}{{ x }}", "{{ -1 }}", "{{-1 }}", "{{- -1 }}", "{{ 1 -}} a", "{{ 1 - }}", "a{{- 1 - 2 -}} b",
    ],
    "if": [
        "{% if yes %}a{% elif yes %}b{% else %}c{% endif %}", "{% if no %}a{% elif yes %}b{% else %}c{% endif %}",
        "{% if no %}a{% elif no %}b{% else %}c{% endif %}", "{% if no %}a{% endif %}", "{% if undefined_name %}a{% else %}b{% endif %}",
        "{% if undefined_name.x %}a{% endif %}", "{% if messages[0].x %}a{% else %}b{% endif %}", "{% if %}{% endif %}", "{% if yes %}",
        "{% if yes %}{% else %}{% else %}{% endif %}", "{% else %}", "{% endif %}", "{% if yes %}{% endfor %}", "{% elif %}", "{% if yes %}{% elif %}{% endif %}",
        "{% if yes then %}{% endif %}", "{% if yes %}{% if no %}a{% else %}b{% endif %}{% endif %}", "{% if not yes %}a{% else if yes %}b{% endif %}",
        "{% if 'a' in word or 'h' in word and no %}a{% else %}b{% endif %}", "{% if (yes) %}a{% endif %}", "{% if yes %}a{% endif yes %}", "{% if 1, 0 %}a{% endif %}",
        "{% if yes and not no and word %}{{ word }}{% endif %}", "{% if tools is not none and tools|length > 0 %}{{ tools|length }}{% endif %}",
        "{% if undefined_name is defined and undefined_name > 1 %}a{% else %}b{% endif %}", "{% if word == 'hello' %}\n  in\n{% else %}\n  out\n{% endif %}\nafter",
    ],
    "set and namespace": [
        "{% set x = 1 %}{{ x }}", "{% set x, y = 1, 2 %}{{ x }}{{ y }}", "{% set x, y = [1, 2] %}{{ x }}{{ y }}", "{% set x, y = 'ab' %}{{ x }}{{ y }}",
        "{% set (x, y) = (1, 2) %}{{ y }}", "{% set x, y = 1 %}", "{% set x, y = [1, 2, 3] %}", "{% set x = 1, 2 %}{{ x }}", "{% set x %}a{{ word }}{% endset %}[{{ x }}]",
        "{% set x %}{% endset %}[{{ x }}]", "{% set x | upper %}a{{ word }}{% endset %}{{ x }}", "{% set x | replace('a', 'b') | upper %}aa{% endset %}{{ x }}",
        "{% set x %}<{% endset %}{{ x is string }}{{ x is escaped }}{{ x|e }}", "{% set x = 1 %}{% if yes %}{% set x = 2 %}{% endif %}{{ x }}",
        "{% set x = 1 %}{% for i in list %}{% set x = i %}{% endfor %}{{ x }}", "{% set x = 1 %}{% for i in list %}{{ x }}{% set x = i %}{{ x }}{% endfor %}",
        "{% if yes %}{% set z = 3 %}{% endif %}{{ z }}", "{% if no %}{% set z = 3 %}{% endif %}{{ z is defined }}", "{% for i in list %}{% set z = i %}{% endfor %}{{ z is defined }}",
        "{% set word = 'x' %}{{ word }}", "{% set messages = messages[1:] %}{{ messages|length }}", "{% for m in messages %}{% set messages = 1 %}{% endfor %}{{ messages|length }}",
        "{% set ns = namespace(x=1) %}{% for i in list %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b is defined }}",
        "{% set ns = namespace(x=[]) %}{% set ns.x = ns.x + [1] %}{{ ns.x }}", "{% set ns = namespace(x=1) %}{{ ns }}", "{% set ns = namespace(x=1) %}{{ ns['x'] }}", "{% set ns = namespace(x=1) %}{% set ns['x'] = 2 %}",
        "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}", "{% set x.y = 1 %}", "{% set flat.k1 = 1 %}", "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{% set ns = namespace(a=1) %}{% set ns.a, ns.b = 2, 3 %}{{ ns.a }}{{ ns.b }}", "{% set ns = namespace() %}{% set ns.x %}block{% endset %}{{ ns.x }}", "{% set %}", "{% set x %}", "{% set x = %}", "{% set 1 = 2 %}",
        "{% set x = 1 %}{% endset %}", "{% set true = 1 %}", "{% set none = 1 %}", "{% set loop = 1 %}{{ loop }}", "{% set x = y = 1 %}", "{% set x = x %}{{ x is defined }}", "{% set x = undefined_name %}{{ x is defined }}",
        "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q is defined }}", "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% with a = 1 %}{% with b = a + 1 %}{{ b }}{% endwith %}{% endwith %}",
        "{% with a = 1, b = a %}{{ b is defined }}{% endwith %}", "{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% do 1 %}", "{% do list.append(1) %}", "{% set x = list.append(4) %}{{ list }}",
        "{% set x = [] %}{% set _ = x.append(1) %}{{ x }}", "{% set x = {} %}{% set _ = x.update({'a': 1}) %}{{ x }}", "{% set _x = 1 %}{{ _x }}", "{% set x = 1 if no %}{{ x is defined }}", "{% set x = word if yes else 'b' %}{{ x }}",
        "{% set a %}\n line\n{% endset %}\n[{{ a }}]", "{%- set a -%}\n line\n{%- endset -%}\n[{{ a }}]", "{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'tool' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}",
        "{% set x = 1 %}{% set f %}{{ x }}{% endset %}{% set x = 2 %}{{ f }}{{ x }}", "{% set dict = 1 %}{{ dict }}", "{% set range = 3 %}{{ range }}", "{{ namespace(a=1) is mapping }}", "{{ namespace(a=1)|length }}",
    ],
    "for": [
        "{% for i in list %}{{ i }},{% endfor %}", "{% for i in void %}{{ i }}{% else %}none{% endfor %}", "{% for i in list %}{{ i }}{% else %}none{% endfor %}",
        "{% for i in undefined_name %}x{% else %}e{% endfor %}", "{% for i in nothing %}x{% endfor %}", "{% for i in 5 %}x{% endfor %}", "{% for i in word %}{{ i }}.{% endfor %}",
        "{% for k in flat %}{{ k }}{% endfor %}", "{% for k, v in flat.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in flat|items %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in flat|dictsort(reverse=true) %}{{ k }}={{ v }};{% endfor %}",
        "{% for a, b in rows %}{{ a }}{{ b }};{% endfor %}", "{% for (a, b) in rows %}{{ a }}{{ b }};{% endfor %}", "{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in list %}{% endfor %}",
        "{% for a, b in ['xy', 'zw'] %}{{ b }}{{ a }}{% endfor %}", "{% for a, in [[1], [2]] %}{{ a }}{% endfor %}", "{% for i in list %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}",
        "{% for i in list %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }};{% endfor %}", "{% for i in list %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}", "{% for i in list %}{{ loop.cycle('a', 'b') }}{% endfor %}",
        "{% for i in list %}{{ loop.cycle() }}{% endfor %}", "{% for i in [1, 1, 2, 2, 1] %}{{ loop.changed(i) }}{% endfor %}", "{% for i in [1, 1, 2] %}{{ loop.changed(i, loop.index) }}{% endfor %}", "{% for i in list %}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}",
        "{% for i in list %}{{ loop.nothing is defined }}{% endfor %}", "{% for i in list %}{% for j in list %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}", "{% for i in list %}{% set outer = loop %}{% for j in [1, 2] %}{{ outer.index }}{{ loop.index }},{% endfor %}{% endfor %}",
        "{% for i in rows recursive %}[{% if i is iterable and i is not string %}{{ loop(i) }}{% else %}{{ i }}{{ loop.depth }}{% endif %}]{% endfor %}", "{% for x in [{'c': [{'c': []}, {'c': []}]}] recursive %}{{ loop.depth0 }}{{ loop.index }}{{ loop(x.c) }}{% endfor %}",
        "{% for i in list %}{{ loop(list) }}{% endfor %}", "{% for i in list if i > 1 %}{{ loop.index }}:{{ i }}/{{ loop.length }};{% endfor %}", "{% for i in list if i > 5 %}{{ i }}{% else %}none{% endfor %}", "{% for i in list if loop.index > 1 %}{{ i }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ loop.last }};{% endfor %}", "{% for i in list %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for i in list %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
        "{% for i in list %}{% break %}{% else %}e{% endfor %}", "{% for i in list %}{% continue %}{% else %}e{% endfor %}", "{% break %}", "{% continue %}", "{% if yes %}{% break %}{% endif %}", "{% for i in list %}{% for j in list %}{% break %}{% endfor %}{{ i }}{% endfor %}",
        "{% for i in list %}{% if i == 1 %}{% continue %}{% endif %}{{ loop.index }}{{ loop.last }};{% endfor %}", "{% for i in range(3) %}{{ i }}{% endfor %}{{ i is defined }}", "{% set i = 9 %}{% for i in list %}{% endfor %}{{ i }}", "{% for i in list %}{% endfor %}{{ loop is defined }}",
        "{% for i in list|sort %}{{ i }}{% endfor %}", "{% for i in list|reverse %}{{ i }}{{ loop.last }}{% endfor %}", "{% for i in list|map('string') %}{{ i }}{{ loop.length }}{% endfor %}", "{% for i in list|map('string') %}{{ i }}{{ loop.last }}{{ loop.nextitem }}{% endfor %}",
        "{% for i in messages[1:] %}{{ i.role }},{% endfor %}", "{% for i in messages[::-1] %}{{ i.role }},{% endfor %}", "{% for i in (1, 2) %}{{ i }}{% endfor %}", "{% for i in 1, 2 %}{{ i }}{% endfor %}", "{% for i in [1, 2] + [3] %}{{ i }}{% endfor %}", "{% for i in list if yes else void %}{{ i }}{% endfor %}", "{% for i in (list if yes else void) %}{{ i }}{% endfor %}",
        "{% for i in list %}\n  {{ i }}\n{% endfor %}\n", "{%- for i in list %}\n  {{- i }}\n{%- endfor %}\n", "{% for i in list -%}\n  {{ i }}\n{%- endfor %}", "{% for i in list %}", "{% for in list %}{% endfor %}", "{% for i list %}{% endfor %}", "{% for i in %}{% endfor %}", "{% for i.x in list %}{% endfor %}", "{% endfor %}", "{% for loop in list %}{{ loop }}{% endfor %}",
        "{% for i in list %}{{ loop }}{% endfor %}", "{% for i in list %}{{ loop.index is odd }}{{ loop is defined }}{% endfor %}", "{% for k, v in nested|dictsort %}{{ k }}{% endfor %}", "{% for k, g in people|groupby('age') %}{{ k }}:{{ g|map(attribute='name')|join('/') }};{% endfor %}", "{% for g in people|groupby('age') %}{{ g.grouper }}{{ g.list|length }};{% endfor %}",
        "{% for b in range(5)|batch(2, 0) %}{{ b }}{% endfor %}", "{% for m in messages %}{{ m.role }}{% if not loop.last %}, {% endif %}{% endfor %}", "{% for m in messages %}{% if loop.first and m.role == 'system' %}S{% elif (m.role == 'user') != (loop.index0 % 2 == 0) %}X{% endif %}{% endfor %}", "{% for i in list %}{% set loop = 5 %}{{ loop }}{% endfor %}",
        "{% for i in range(3) %}{% for i in range(2) %}{{ i }}{% endfor %}-{{ i }};{% endfor %}", "{% for p in messages[4].content %}{% if p.type == 'text' %}{{ p.text }}{% else %}[{{ p.type }}]{% endif %}{% endfor %}", "{% for t in messages[2].tool_calls %}{{ t.function.name }}({% if t.function.arguments is mapping %}{{ t.function.arguments|tojson }}{% else %}{{ t.function.arguments }}{% endif %}){% endfor %}", "{% for i in cycler('a') %}{% endfor %}", "{% for i in 'ab' 'cd' %}{{ i }}{% endfor %}",
        "{% set c = cycler('a', 'b', 'c') %}{% for i in range(4) %}{{ c.next() }}{% endfor %}{{ c.current }}{{ c.reset() }}{{ c.current }}", "{% set j = joiner(', ') %}{% for i in list %}{{ j() }}{{ i }}{% endfor %}", "{% set j = joiner() %}{% for i in list %}{{ j() }}{{ i }}{% endfor %}", "{% for i in list %}{{ loop.length - loop.index }}{% endfor %}", "{% for i in list %}{{ loop['index'] }}{% endfor %}",
    ],
    "macros": [
        "{% macro f() %}x{% endmacro %}{{ f() }}", "{% macro f(a) %}[{{ a }}]{% endmacro %}{{ f(1) }}{{ f('b') }}", "{% macro f(a) %}[{{ a }}]{% endmacro %}{{ f() }}", "{% macro f(a) %}{{ a is defined }}{% endmacro %}{{ f() }}", "{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(b=4, a=5) }}",
        "{% macro f(a=1, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(5) }}{{ f(a=6) }}", "{% macro f(a=1, b) %}{% endmacro %}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=1) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}", "{% macro f(a) %}{{ varargs }}{% endmacro %}{{ f(1, 2, 3) }}", "{% macro f(a) %}{{ kwargs }}{% endmacro %}{{ f(1, b=2) }}", "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, *[2, 3], **{'x': 4}) }}",
        "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}{{ f(**{'a': 3, 'b': 4}) }}", "{% macro f(a) %}{{ caller() }}{{ a }}{% endmacro %}{% call f(1) %}body{% endcall %}", "{% macro f() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) f() %}{{ a }}-{{ b }}{% endcall %}", "{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}", "{% macro f() %}{% if caller %}c{% else %}n{% endif %}{% endmacro %}{{ f() }}", "{% macro f() %}x{% endmacro %}{% call f() %}body{% endcall %}", "{% macro f(caller=none) %}{{ caller is none }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{% macro f() %}{{ word }}{% endmacro %}{{ f() }}", "{% set x = 1 %}{% macro f() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ f() }}", "{% macro f() %}{% set word = 'in' %}{{ word }}{% endmacro %}{{ f() }}{{ word }}", "{% macro f() %}<b>{% endmacro %}{{ f() }}{{ f()|e }}{{ f() is escaped }}", "{% macro f() %} x {% endmacro %}[{{ f()|trim }}]", "{% macro f() %}\nx\n{% endmacro %}\n[{{ f() }}]", "{%- macro f() -%}\nx\n{%- endmacro -%}\n[{{ f() }}]",
        "{% macro f(a, b='x') %}{% endmacro %}{{ f.name }}{{ f.arguments }}{{ f.catch_kwargs }}{{ f.catch_varargs }}{{ f.caller }}", "{{ f() }}{% macro f() %}x{% endmacro %}", "{% for i in list %}{% macro f() %}{{ i }}{% endmacro %}{{ f() }}{% endfor %}", "{% if yes %}{% macro f() %}x{% endmacro %}{% endif %}{{ f() }}", "{% for i in list %}{{ g(i) }}{% endfor %}{% macro g(i) %}{{ i }}{% endmacro %}", "{% macro f(x) %}{{ loop is defined }}{% endmacro %}{% for i in [1] %}{{ f(1) }}{% endfor %}", "{% macro f %}{% endmacro %}", "{% macro f( %}{% endmacro %}", "{% macro 1() %}{% endmacro %}", "{% macro f() %}", "{% endmacro %}", "{% macro f() %}x{% endmacro f %}{{ f() }}", "{% macro f(a, a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a=[]) %}{% set _ = a.append(1) %}{{ a }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ x|length }}{% endmacro %}{{ f(messages) }}", "{% macro f(x) %}{% for y in x %}{{ y }}{% endfor %}{% endmacro %}{{ f(list) }}", "{% macro f(x) %}{% if x %}{{ 'y' }}{% else %}{{ 'n' }}{% endif %}{% endmacro %}{{ f(0) ~ f(1) }}", "{% macro f() %}a{% endmacro %}{% set g = f %}{{ g() }}", "{% macro f() %}a{% endmacro %}{{ f is callable }}{{ f is defined }}", "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}", "{% macro f(g) %}{{ g() }}{% endmacro %}{% macro h() %}h{% endmacro %}{{ f(h) }}", "{% macro f() %}{{ f }}{% endmacro %}", "{% call raise_exception('x') %}{% endcall %}", "{% call %}{% endcall %}", "{% call nothing() %}x{% endcall %}", "{% call(a) %}{% endcall %}", "{% macro f() %}{{ caller() }}|{{ caller() }}{% endmacro %}{% call f() %}{{ word }}{% endcall %}", "{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}{% endmacro %}{{ outer() }}", "{% macro f() %}{{ 1 }}{% endmacro %}{{ f() + 'a' }}{{ f()|int + 1 }}{{ [f()] }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ list|map('string')|join }}{{ f(a=undefined_name) }}", "{% macro f(a, b=none) %}{{ a }}/{{ b }}{% endmacro %}{{ f(1, b=undefined_name) }}", "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(1)(2) }}", "{% macro _f() %}x{% endmacro %}{{ _f() }}", "{% set x = 5 %}{% macro f(y=x) %}{{ y }}{% endmacro %}{% set x = 6 %}{{ f() }}",
    ],
    "blocks of other kinds": [
        "{% filter upper %}a{{ word }}{% endfilter %}", "{% filter replace('l', 'L')|title %}{{ word }} x{% endfilter %}", "{% filter trim %}\n  a  \n{% endfilter %}|", "{% filter indent(2, true) %}a\nb{% endfilter %}", "{% filter nothing %}{% endfilter %}", "{% filter upper %}", "{% filter %}{% endfilter %}", "{% filter upper %}{% set q = 1 %}{% endfilter %}{{ q is defined }}", "{% filter e %}<{% endfilter %}", "{% filter length %}abc{% endfilter %}", "{% filter tojson %}a\"b{% endfilter %}", "{% filter list %}abc{% endfilter %}",
        "{% generation %}x{% endgeneration %}", "{% generation %}\n {{ word }} \n{% endgeneration %}\ny", "{%- generation -%} x {%- endgeneration -%} y", "{% generation %}x", "{% endgeneration %}", "{% generation x %}{% endgeneration %}", "{% for m in messages[:3] %}{% if m.role == 'assistant' %}{% generation %}A{{ loop.index }}{% endgeneration %}{% else %}{{ m.role }}{% endif %}{% endfor %}", "{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q is defined }}", "{% set q = 0 %}{% generation %}{{ q }}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q }}", "{% generation %}{% generation %}x{% endgeneration %}{% endgeneration %}", "{% for i in list %}{% generation %}{% break %}{% endgeneration %}{% endfor %}", "{% generation %}{{ '<'|e }}<{% endgeneration %}", "{% for i in [1] %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}",
        "{% block a %}x{{ word }}{% endblock %}", "{% block a %}x{% endblock a %}{{ self.a() }}", "{% block a %}{% endblock b %}", "{% block a %}1{% endblock %}{% block a %}2{% endblock %}", "{% for i in list %}{% block a %}{{ i is defined }}{% endblock %}{% endfor %}", "{% for i in list %}{% block a scoped %}{{ i }}{% endblock %}{% endfor %}", "{% block a %}{{ super() }}{% endblock %}", "{% block a required %}{% endblock %}", "{% block %}{% endblock %}", "{% include 'a' %}", "{% include 'a' ignore missing %}x", "{% import 'a' as b %}", "{% from 'a' import b %}", "{% extends 'a' %}",
        "{% autoescape true %}{{ html }}{% endautoescape %}{{ html }}", "{% autoescape false %}{{ html }}{% endautoescape %}", "{% autoescape yes %}{{ html }}{{ html|safe }}{{ '<' ~ html|safe }}{% endautoescape %}", "{% autoescape true %}{% set x %}<{{ '<' }}{% endset %}{{ x }}{{ x is escaped }}{% endautoescape %}", "{% autoescape true %}{% macro f() %}<{{ '<' }}{% endmacro %}{{ f() }}{% endautoescape %}", "{% autoescape true %}{{ ['<', '>']|join('<') }}{{ 1 }}{{ none }}{{ ['<'] }}{{ '<'|upper }}{{ '<'|tojson }}{% endautoescape %}",
        "{% print 'a' %}", "{% print 1, 2 %}", "{% print %}", "{% nothing %}", "{% trans %}x{% endtrans %}", "{% debug %}", "{% 1 %}", "{% 'a' %}", "{% for %}", "{% continue", "{% if yes %}{% raw %}{% endif %}{% endraw %}{% endif %}",
        "{{ raise_exception('stop here') }}", "a{% if yes %}{{ raise_exception('stop') }}{% endif %}", "{% if no %}{{ raise_exception('stop') }}{% endif %}a", "{{ word.nothing.more }}", "{{ word|nothing }}", "{% if no %}{{ word|nothing }}{% endif %}a", "{% if no %}{{ word is nothing }}{% endif %}a", "{{ 'a'|map('nothing')|list if no else 'b' }}",
    ],
    "chat templates": [
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] if message['content'] is string else message['content']|map(attribute='text')|select('defined')|join) + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' ~ m.content ~ ' [/INST]' }}{% elif m.role == 'assistant' %}{{ m.content ~ eos_token }}{% endif %}{% endfor %}",
        "{%- if tools %}\n    {{- '<tools>' }}\n    {%- for tool in tools %}\n        {{- '\\n' }}\n        {{- tool | tojson }}\n    {%- endfor %}\n    {{- '\\n</tools>\\n' }}\n{%- endif %}\n",
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n    {%- if ns.multi_step_tool and message.role == \"user\" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\n        {%- set ns.multi_step_tool = false %}\n        {%- set ns.last_query_index = index %}\n    {%- endif %}\n{%- endfor %}\n{{ ns.last_query_index }}",
        "{%- set content = messages[5].content %}\n{%- if '</think>' in content %}\n    {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n{%- endif %}\n{{- '[' + reasoning.strip('\\n') + ']' + content.lstrip('\\n') }}",
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{{ content }}{% endfor %}",
        "{%- for message in messages %}\n{%- if message.tool_calls is defined and message.tool_calls %}\n{%- for tc in message.tool_calls %}\n<tool_call>{\"name\": \"{{ tc.function.name }}\", \"arguments\": {{ tc.function.arguments | tojson if tc.function.arguments is not string else tc.function.arguments }}}</tool_call>\n{%- endfor %}\n{%- endif %}\n{%- endfor %}\n",
        "{%- macro render_content(content) %}\n{%- if content is string %}{{ content }}{%- else %}{%- for item in content %}{%- if item.type == 'image' %}<image>{%- else %}{{ item.text }}{%- endif %}{%- endfor %}{%- endif %}\n{%- endmacro %}\n{%- for m in messages %}{{ m.role }}: {{ render_content(m.content) }}\n{% endfor %}",
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}",
        "{%- macro type_of(p) -%}\n{%- if p.enum is defined -%}{{ p.enum|map('tojson')|join(' | ') }}{%- elif p.type == 'string' -%}str{%- elif p.type == 'integer' -%}int{%- else -%}{{ p.type }}{%- endif -%}\n{%- endmacro -%}\n{%- for t in tools %}{{ t.function.name }}({% for n, p in t.function.parameters.properties.items() %}{{ n }}: {{ type_of(p) }}{% if p.default is defined %} = {{ p.default }}{% endif %}{{ ', ' if not loop.last }}{% endfor %})\n{% endfor %}",
        "{% for m in messages %}{{ m.content if m.content is string else '' }}{{ loop.cycle('', eos_token) }}{% endfor %}",
        "{%- set first = true %}{%- for m in messages if m.role in ['user', 'assistant'] -%}{{ '' if loop.first else ' | ' }}{{ m.role|upper }}:{{ m.content|length }}{%- endfor -%}",
        "{{ '<|system|>\n' ~ (messages|selectattr('role', 'equalto', 'system')|map(attribute='content')|first|default('none', true)) }}\n{{ (messages|last).role }}",
        "{% for p in tools[0].function.parameters.properties|dictsort %}{{ p[0] }}:{{ p[1].get('type', 'any') }}{{ ' required' if p[0] in tools[0].function.parameters.required }};{% endfor %}",
        "{%- if messages[0].role == 'system' -%}\n  {{- messages[0].content | trim -}}\n{%- endif -%}\n{{ \"\\n\\n\" }}{%- for m in messages[1:2] %}\n    {{ m.content | indent(4) }}\n{%- endfor %}",
    ],
}

MACHINE = re.compile(r" at 0x[0-9a-f]+|<(generator|Macro|function|bound|built-in|class|module)")


def environment():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jinja2
        import transformers
        from transformers.utils.chat_template_utils import _compile_jinja_template
    return _compile_jinja_template, f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}"


def render(compile_template, source):
    """The text, or the name of the error's type."""
    try:
        # a template may change what it is given where the sandbox allows it: each gets its own copy
        return {"text": compile_template(source).render(**json.loads(json.dumps(CONTEXT)))}
    except Exception as error:  # noqa: BLE001 - whatever a template raises is the answer
        return {"error": type(error).__name__}


def sources():
    for text in EXPRESSIONS.values():
        for line in text.strip("\n").split("\n"):
            yield "{{ " + line + " }}"
    for templates in TEMPLATES.values():
        yield from templates


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    compile_template, versions = environment()
    entries, left_out, seen = [], [], set()
    for source in sources():
        if source in seen:
            continue
        seen.add(source)
        answer = render(compile_template, source)
        if MACHINE.search(answer.get("text", "")):
            left_out.append(source)
            continue
        entries.append([source, answer])
    rows = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in entries)
    context = json.dumps(CONTEXT, ensure_ascii=True, indent=1)
    python = ".".join(platform.python_version_tuple()[:2])
    Path(sys.argv[1]).write_text(
        f'{{"origin": "scripts/chat_template_expressions.py ({versions}, Python {python})",\n'
        f'"context": {context},\n"entries": [\n{rows}\n]}}\n')
    errors = sum("error" in answer for _, answer in entries)
    print(f"{len(entries)} templates, {errors} of them errors; {len(left_out)} left out, their text names an address")


if __name__ == "__main__":
    main()
