"""The table of well-known functions of numbers."""

import math

from scripts.train.problems.python_tasks.inputs import digits_input
from scripts.train.problems.python_tasks.known_inputs import (
    clamp_input,
    count_input,
    pair_input,
    positive_input,
    positive_pair_input,
    power_input,
    sides_input,
    signed_input,
    temperature_input,
    triple_input,
    year_input,
)
from scripts.train.problems.python_tasks.parts import KnownFunction
from scripts.train.problems.python_tasks.reductions import insertion_sorted
from scripts.train.problems.python_tasks.sources import divisors


def _fibonacci(n: int) -> int:
    if n < 2:
        return n
    return _fibonacci_table()[n]


def _fibonacci_table() -> list[int]:
    table = [0, 1]
    while len(table) < 200:
        table.append(table[-1] + table[-2])
    return table


def _is_prime(n: int) -> bool:
    return n > 1 and len(divisors(n)) == 2


def _collatz(n: int) -> list[int]:
    path = [n]
    while path[-1] != 1:
        last = path[-1]
        path.append(3 * last + 1 if last & 1 else last >> 1)
    return path


def _prime_factors(n: int) -> list[int]:
    for divisor in range(2, n + 1):
        if n % divisor == 0:
            return [divisor, *_prime_factors(n // divisor)]
    return []


def _fizzbuzz(n: int) -> list[str]:
    result = [f"{i}" for i in range(1, n + 1)]
    result[2::3] = ["Fizz"] * len(result[2::3])
    result[4::5] = ["Buzz"] * len(result[4::5])
    result[14::15] = ["FizzBuzz"] * len(result[14::15])
    return result


NUMBER_FUNCTIONS: list[KnownFunction] = [
    KnownFunction(
        "fibonacci_sequence",
        arguments=("n",),
        phrases=(
            "return{s} the first @0 numbers of the Fibonacci sequence",
            "calculate{s} the Fibonacci sequence",
            "calculate{s} the Fibonacci sequence",
            "compute{s} the Fibonacci sequence",
            "generate{s} the Fibonacci sequence",
            "generate{s} the first @0 Fibonacci numbers",
            "return{s} a list of the first @0 Fibonacci numbers",
            "return{s} the Fibonacci series",
        ),
        body="a, b = 0, 1\nresult = []\nfor _ in range(@0):\n    result.append(a)\n"
        "    a, b = b, a + b\nreturn result",
        reference=lambda n: _fibonacci_table()[:n],
        inputs=count_input,
    ),
    KnownFunction(
        "fibonacci",
        arguments=("n",),
        phrases=(
            "return{s} the @0-th Fibonacci number",
            "compute{s} the @0-th Fibonacci number",
            "calculate{s} the nth Fibonacci number",
            "return{s} the Fibonacci number at position @0",
            "find{s} the nth number of the Fibonacci sequence",
        ),
        body="a, b = 0, 1\nfor _ in range(@0):\n    a, b = b, a + b\nreturn a",
        reference=_fibonacci,
        inputs=count_input,
    ),
    KnownFunction(
        "add",
        arguments=("a", "b"),
        phrases=(
            "add{s} two numbers",
            "return{s} the sum of two numbers",
            "add{s} two numbers together",
            "compute{s} the sum of two numbers",
            "add{s} @0 and @1",
        ),
        body="return @0 + @1",
        reference=lambda a, b: sum((a, b)),
        inputs=pair_input,
    ),
    KnownFunction(
        "subtract",
        arguments=("a", "b"),
        phrases=(
            "subtract{s} one number from another",
            "subtract{s} two numbers",
            "return{s} the difference of two numbers",
            "subtract{s} the second number from the first",
        ),
        body="return @0 - @1",
        reference=lambda a, b: a + -b,
        inputs=pair_input,
    ),
    KnownFunction(
        "multiply",
        arguments=("a", "b"),
        phrases=(
            "multipl{ies} two numbers",
            "return{s} the product of two numbers",
            "multipl{ies} @0 and @1",
            "compute{s} the product of two numbers",
        ),
        body="return @0 * @1",
        reference=lambda a, b: math.prod((a, b)),
        inputs=pair_input,
    ),
    KnownFunction(
        "divide",
        arguments=("a", "b"),
        phrases=(
            "divide{s} two numbers and return{s} None for a division by zero",
            "divide{s} one number by another and return{s} None if the second is zero",
        ),
        body="if @1 == 0:\n    return None\nreturn @0 / @1",
        reference=lambda a, b: a / b if b else None,
        inputs=lambda rng: (rng.randrange(-30, 60), rng.choice((0, 1, 2, 5, -4, 7))),
    ),
    KnownFunction(
        "average_of_two",
        arguments=("a", "b"),
        phrases=(
            "return{s} the average of two numbers",
            "compute{s} the mean of two numbers",
            "calculate{s} the average of @0 and @1",
        ),
        body="return (@0 + @1) / 2",
        reference=lambda a, b: a / 2 + b / 2,
        inputs=pair_input,
    ),
    KnownFunction(
        "maximum",
        arguments=("a", "b"),
        phrases=(
            "return{s} the larger of two numbers",
            "return{s} the maximum of two numbers",
            "find{s} the larger of two numbers",
            "find{s} the bigger of two numbers",
        ),
        body="return max(@0, @1)",
        reference=lambda a, b: a if a > b else b,
        inputs=pair_input,
    ),
    KnownFunction(
        "minimum",
        arguments=("a", "b"),
        phrases=(
            "return{s} the smaller of two numbers",
            "return{s} the minimum of two numbers",
            "find{s} the smaller of two numbers",
        ),
        body="return min(@0, @1)",
        reference=lambda a, b: a if a < b else b,
        inputs=pair_input,
    ),
    KnownFunction(
        "maximum_of_three",
        arguments=("a", "b", "c"),
        phrases=(
            "return{s} the largest of three numbers",
            "return{s} the maximum of three numbers",
            "find{s} the largest of three numbers",
            "find{s} the maximum of three numbers",
        ),
        body="return max(@0, @1, @2)",
        reference=lambda a, b, c: insertion_sorted([a, b, c])[2],
        inputs=triple_input,
    ),
    KnownFunction(
        "minimum_of_three",
        arguments=("a", "b", "c"),
        phrases=(
            "return{s} the smallest of three numbers",
            "return{s} the minimum of three numbers",
            "find{s} the smallest of three numbers",
        ),
        body="return min(@0, @1, @2)",
        reference=lambda a, b, c: insertion_sorted([a, b, c])[0],
        inputs=triple_input,
    ),
    KnownFunction(
        "add_three",
        arguments=("a", "b", "c"),
        phrases=(
            "add{s} three numbers",
            "return{s} the sum of three numbers",
            "compute{s} the sum of three numbers",
        ),
        body="return @0 + @1 + @2",
        reference=lambda a, b, c: sum((a, b, c)),
        inputs=triple_input,
    ),
    KnownFunction(
        "median_of_three",
        arguments=("a", "b", "c"),
        phrases=(
            "return{s} the middle one of three numbers",
            "return{s} the median of three numbers",
        ),
        body="return sorted([@0, @1, @2])[1]",
        reference=lambda a, b, c: a + b + c - max(a, b, c) - min(a, b, c),
        inputs=triple_input,
    ),
    KnownFunction(
        "swap",
        arguments=("a", "b"),
        phrases=("swap{s} two values", "return{s} two values in swapped order"),
        body="return @1, @0",
        reference=lambda a, b: (b, a),
        inputs=pair_input,
    ),
    KnownFunction(
        "factorial",
        arguments=("n",),
        phrases=(
            "return{s} the factorial of a number",
            "compute{s} the factorial of a number",
            "calculate{s} the factorial of @0",
            "calculate{s} the factorial of a number",
            "find{s} the factorial of a number",
        ),
        body="result = 1\nfor i in range(2, @0 + 1):\n    result *= i\nreturn result",
        reference=math.factorial,
        inputs=count_input,
    ),
    KnownFunction(
        "gcd",
        arguments=("a", "b"),
        phrases=(
            "return{s} the greatest common divisor of two numbers",
            "compute{s} the greatest common divisor of two numbers",
            "find{s} the gcd of two numbers",
            "calculate{s} the greatest common divisor of @0 and @1",
        ),
        body="while @1:\n    @0, @1 = @1, @0 % @1\nreturn @0",
        reference=math.gcd,
        inputs=positive_pair_input,
    ),
    KnownFunction(
        "lcm",
        arguments=("a", "b"),
        phrases=(
            "return{s} the least common multiple of two numbers",
            "compute{s} the least common multiple of two numbers",
            "find{s} the lcm of two numbers",
        ),
        body="return @0 * @1 // math.gcd(@0, @1)",
        reference=math.lcm,
        inputs=positive_pair_input,
        imports="import math",
    ),
    KnownFunction(
        "is_prime",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is prime",
            "check{s} if a number is prime",
            "return{s} whether a number is prime",
            "test{s} whether @0 is a prime number",
            "determine{s} if a number is a prime",
        ),
        body="return @0 > 1 and all(@0 % i for i in range(2, int(@0 ** 0.5) + 1))",
        reference=_is_prime,
        inputs=positive_input,
    ),
    KnownFunction(
        "primes_below",
        arguments=("n",),
        phrases=(
            "return{s} a list of the prime numbers below @0",
            "return{s} all primes below @0",
            "find{s} all prime numbers less than @0",
            "list{s} the primes smaller than @0",
        ),
        body="result = []\nfor x in range(2, @0):\n    if all(x % p for p in result):\n"
        "        result.append(x)\nreturn result",
        reference=lambda n: [x for x in range(n) if _is_prime(x)],
        inputs=positive_input,
    ),
    KnownFunction(
        "prime_factors",
        arguments=("n",),
        phrases=(
            "return{s} the prime factors of a number",
            "compute{s} the prime factorization of a number",
            "find{s} the prime factors of @0",
        ),
        body="result = []\nfor d in range(2, @0 + 1):\n    while @0 % d == 0:\n"
        "        result.append(d)\n        @0 //= d\nreturn result",
        reference=_prime_factors,
        inputs=positive_input,
    ),
    KnownFunction(
        "is_perfect",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is perfect",
            "return{s} whether a number is a perfect number",
            "test{s} if @0 is a perfect number",
        ),
        body="return @0 > 1 and sum(x for x in range(1, @0) if @0 % x == 0) == @0",
        reference=lambda n: n in (6, 28, 496),
        inputs=positive_input,
    ),
    KnownFunction(
        "power",
        arguments=("a", "b"),
        phrases=(
            "raise{s} one number to the power of another",
            "compute{s} @0 to the power of @1",
            "return{s} the power of a number",
            "raise{s} a number to a power",
        ),
        body="return @0 ** @1",
        reference=lambda a, b: math.prod([a] * b),
        inputs=power_input,
    ),
    KnownFunction(
        "collatz_steps",
        arguments=("n",),
        phrases=(
            "count{s} the Collatz steps from a number to 1",
            "return{s} the number of Collatz steps until a number reaches 1",
            "count{s} the steps of the Collatz sequence",
        ),
        body="steps = 0\nwhile @0 != 1:\n    @0 = @0 // 2 if @0 % 2 == 0 else 3 * @0 + 1\n"
        "    steps += 1\nreturn steps",
        reference=lambda n: len(_collatz(n)) - 1,
        inputs=positive_input,
    ),
    KnownFunction(
        "collatz",
        arguments=("n",),
        phrases=(
            "return{s} the Collatz sequence of a number",
            "compute{s} the Collatz sequence that starts with @0",
            "generate{s} the Collatz sequence of a number",
        ),
        body="result = [@0]\nwhile @0 != 1:\n"
        "    @0 = @0 // 2 if @0 % 2 == 0 else 3 * @0 + 1\n    result.append(@0)\nreturn result",
        reference=_collatz,
        inputs=positive_input,
    ),
    KnownFunction(
        "is_leap_year",
        arguments=("year",),
        phrases=(
            "check{s} whether a year is a leap year",
            "return{s} whether a year is a leap year",
            "determine{s} if a year is a leap year",
            "test{s} whether @0 is a leap year",
        ),
        body="return @0 % 4 == 0 and (@0 % 100 != 0 or @0 % 400 == 0)",
        reference=lambda year: year % 400 == 0 if year % 100 == 0 else year % 4 == 0,
        inputs=year_input,
    ),
    KnownFunction(
        "celsius_to_fahrenheit",
        arguments=("celsius",),
        phrases=(
            "convert{s} Celsius to Fahrenheit",
            "convert{s} a temperature from Celsius to Fahrenheit",
            "convert{s} degrees Celsius to Fahrenheit",
        ),
        body="return @0 * 9 / 5 + 32",
        reference=lambda celsius: celsius * 1.8 + 32,
        inputs=temperature_input,
    ),
    KnownFunction(
        "fahrenheit_to_celsius",
        arguments=("fahrenheit",),
        phrases=(
            "convert{s} Fahrenheit to Celsius",
            "convert{s} a temperature from Fahrenheit to Celsius",
            "convert{s} degrees Fahrenheit to Celsius",
        ),
        body="return (@0 - 32) * 5 / 9",
        reference=lambda fahrenheit: (fahrenheit - 32) / 1.8,
        inputs=temperature_input,
    ),
    KnownFunction(
        "is_even",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is even",
            "check{s} if a number is even",
            "return{s} whether a number is even",
            "return{s} True if a number is even",
            "test{s} if @0 is even",
        ),
        body="return @0 % 2 == 0",
        reference=lambda n: n & 1 == 0,
        inputs=signed_input,
    ),
    KnownFunction(
        "is_odd",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is odd",
            "check{s} if a number is odd",
            "return{s} whether a number is odd",
            "return{s} True if a number is odd",
            "test{s} if @0 is odd",
        ),
        body="return @0 % 2 == 1",
        reference=lambda n: n & 1 == 1,
        inputs=signed_input,
    ),
    KnownFunction(
        "is_positive",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is positive",
            "return{s} whether a number is positive",
            "return{s} True if a number is positive",
        ),
        body="return @0 > 0",
        reference=lambda n: n not in (0, -abs(n)),
        inputs=signed_input,
    ),
    KnownFunction(
        "is_divisible",
        arguments=("a", "b"),
        phrases=(
            "check{s} whether one number is divisible by another",
            "return{s} whether @0 is divisible by @1",
            "check{s} if @0 is a multiple of @1",
        ),
        body="return @0 % @1 == 0",
        reference=lambda a, b: math.gcd(a, b) == b,
        inputs=positive_pair_input,
    ),
    KnownFunction(
        "sign",
        arguments=("n",),
        phrases=(
            "return{s} the sign of a number as -1, 0 or 1",
            "return{s} 1 for a positive number, -1 for a negative one and 0 for zero",
            "compute{s} the sign of a number",
        ),
        body="return (@0 > 0) - (@0 < 0)",
        reference=lambda n: 0 if n == 0 else n // abs(n),
        inputs=signed_input,
    ),
    KnownFunction(
        "absolute_value",
        arguments=("n",),
        phrases=(
            "return{s} the absolute value of a number",
            "compute{s} the absolute value of a number",
            "calculate{s} the absolute value of @0",
        ),
        body="return abs(@0)",
        reference=lambda n: max(n, -n),
        inputs=signed_input,
    ),
    KnownFunction(
        "square",
        arguments=("n",),
        phrases=(
            "return{s} the square of a number",
            "square{s} a number",
            "compute{s} the square of a number",
        ),
        body="return @0 ** 2",
        reference=lambda n: n * n,
        inputs=signed_input,
    ),
    KnownFunction(
        "cube",
        arguments=("n",),
        phrases=(
            "return{s} the cube of a number",
            "cube{s} a number",
            "compute{s} the cube of a number",
        ),
        body="return @0 ** 3",
        reference=lambda n: n * n * n,
        inputs=signed_input,
    ),
    KnownFunction(
        "double",
        arguments=("n",),
        phrases=(
            "double{s} a number",
            "return{s} twice a number",
            "return{s} the double of a number",
        ),
        body="return 2 * @0",
        reference=lambda n: n + n,
        inputs=signed_input,
    ),
    KnownFunction(
        "clamp",
        arguments=("n", "low", "high"),
        phrases=(
            "limit{s} a number to the range from @1 to @2",
            "clamp{s} a number between @1 and @2",
            "clamp{s} a number to a range",
        ),
        body="return max(@1, min(@0, @2))",
        reference=lambda n, low, high: sorted((n, low, high))[1],
        inputs=clamp_input,
    ),
    KnownFunction(
        "triangle_number",
        arguments=("n",),
        phrases=(
            "return{s} the @0-th triangle number",
            "compute{s} the nth triangular number",
            "calculate{s} the @0-th triangular number",
        ),
        body="return @0 * (@0 + 1) // 2",
        reference=lambda n: sum(range(n + 1)),
        inputs=count_input,
    ),
    KnownFunction(
        "reverse_number",
        arguments=("n",),
        phrases=(
            "reverse{s} the digits of a number",
            "return{s} a number with its digits reversed",
            "reverse{s} a number",
        ),
        body="return int(str(@0)[::-1])",
        reference=lambda n: int("".join(reversed(f"{n}"))),
        inputs=lambda rng: digits_input(rng, ()),
    ),
    KnownFunction(
        "count_digits",
        arguments=("n",),
        phrases=(
            "count{s} the digits of a number",
            "return{s} the number of digits of a number",
            "return{s} how many digits a number has",
        ),
        body="return len(str(abs(@0)))",
        reference=lambda n: sum(1 for _ in f"{n}"),
        inputs=lambda rng: digits_input(rng, ()),
    ),
    KnownFunction(
        "sum_digits",
        arguments=("n",),
        phrases=(
            "return{s} the sum of the digits of a number",
            "add{s} up the digits of a number",
            "compute{s} the digit sum of a number",
            "sum{s} the digits of a number",
        ),
        body="return sum(int(d) for d in str(abs(@0)))",
        reference=lambda n: sum(n // 10**i % 10 for i in range(12)),
        inputs=lambda rng: digits_input(rng, ()),
    ),
    KnownFunction(
        "is_palindrome_number",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is a palindrome",
            "return{s} whether a number reads the same backwards",
        ),
        body="return str(@0) == str(@0)[::-1]",
        reference=lambda n: list(f"{n}") == list(reversed(f"{n}")),
        inputs=lambda rng: (rng.choice((7, 11, 121, 1221, 10, 123, rng.randrange(1, 2000))),),
    ),
    KnownFunction(
        "is_square",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is a perfect square",
            "return{s} whether a number is a square number",
            "test{s} if @0 is a perfect square",
        ),
        body="return math.isqrt(@0) ** 2 == @0",
        reference=lambda n: n in [i * i for i in range(200)],
        inputs=positive_input,
        imports="import math",
    ),
    KnownFunction(
        "is_power_of_two",
        arguments=("n",),
        phrases=(
            "check{s} whether a number is a power of two",
            "return{s} whether @0 is a power of two",
            "test{s} if a number is a power of 2",
        ),
        body="return @0 > 0 and @0 & (@0 - 1) == 0",
        reference=lambda n: n in [2**i for i in range(40)],
        inputs=lambda rng: (rng.choice((1, 2, 3, 4, 6, 8, 12, 16, 64, rng.randrange(1, 99))),),
    ),
    KnownFunction(
        "to_binary",
        arguments=("n",),
        phrases=(
            "convert{s} a number to binary",
            "return{s} the binary form of a number as a text",
            "convert{s} an integer to a binary string",
        ),
        body="return bin(@0)[2:]",
        reference=lambda n: f"{n:b}",
        inputs=count_input,
    ),
    KnownFunction(
        "from_binary",
        arguments=("text",),
        phrases=(
            "convert{s} a binary string to a number",
            "return{s} the value of a binary number in a text",
        ),
        body="return int(@0, 2)",
        reference=lambda text: sum(2**i for i, bit in enumerate(reversed(text)) if bit == "1"),
        inputs=lambda rng: (f"{rng.randrange(200):b}",),
    ),
    KnownFunction(
        "countdown",
        arguments=("n",),
        phrases=(
            "return{s} a list that counts down from @0 to 1",
            "count{s} down from @0 to 1",
            "return{s} a countdown from @0 to 1",
        ),
        body="return list(range(@0, 0, -1))",
        reference=lambda n: [n - i for i in range(n)],
        inputs=count_input,
    ),
    KnownFunction(
        "powers_of_two",
        arguments=("n",),
        phrases=(
            "return{s} the first @0 powers of two",
            "return{s} a list of the first @0 powers of 2",
        ),
        body="return [2 ** i for i in range(@0)]",
        reference=lambda n: [1 << i for i in range(n)],
        inputs=count_input,
    ),
    KnownFunction(
        "multiplication_table",
        arguments=("n",),
        phrases=(
            "return{s} the multiplication table of @0 from 1 to 10",
            "return{s} the first ten multiples of a number",
        ),
        body="return [@0 * i for i in range(1, 11)]",
        reference=lambda n: [n + n * i for i in range(10)],
        inputs=count_input,
    ),
    KnownFunction(
        "fizzbuzz",
        arguments=("n",),
        phrases=(
            "solve{s} FizzBuzz for the numbers from 1 to @0",
            "return{s} the FizzBuzz list up to @0",
            "implement{s} FizzBuzz",
        ),
        body="result = []\nfor i in range(1, @0 + 1):\n"
        '    word = "Fizz" * (i % 3 == 0) + "Buzz" * (i % 5 == 0)\n'
        "    result.append(word or str(i))\nreturn result",
        reference=_fizzbuzz,
        inputs=count_input,
    ),
    KnownFunction(
        "hypotenuse",
        arguments=("a", "b"),
        phrases=(
            "return{s} the hypotenuse of a right triangle",
            "compute{s} the hypotenuse of a right triangle with legs @0 and @1",
        ),
        body="return (@0 ** 2 + @1 ** 2) ** 0.5",
        reference=math.hypot,
        inputs=positive_pair_input,
    ),
    KnownFunction(
        "rectangle_area",
        arguments=("width", "height"),
        phrases=(
            "return{s} the area of a rectangle",
            "compute{s} the area of a rectangle",
            "calculate{s} the area of a rectangle with sides @0 and @1",
        ),
        body="return @0 * @1",
        reference=lambda width, height: math.prod((width, height)),
        inputs=positive_pair_input,
    ),
    KnownFunction(
        "rectangle_perimeter",
        arguments=("width", "height"),
        phrases=(
            "return{s} the perimeter of a rectangle",
            "compute{s} the perimeter of a rectangle",
            "calculate{s} the perimeter of a rectangle with sides @0 and @1",
        ),
        body="return 2 * (@0 + @1)",
        reference=lambda width, height: width + height + width + height,
        inputs=positive_pair_input,
    ),
    KnownFunction(
        "circle_area",
        arguments=("radius",),
        phrases=(
            "return{s} the area of a circle",
            "compute{s} the area of a circle",
            "calculate{s} the area of a circle with a given radius",
        ),
        body="return math.pi * @0 ** 2",
        reference=lambda radius: radius * radius * math.tau / 2,
        inputs=positive_input,
        imports="import math",
    ),
    KnownFunction(
        "is_triangle",
        arguments=("a", "b", "c"),
        phrases=(
            "check{s} whether three sides form a triangle",
            "return{s} whether three lengths can form a triangle",
        ),
        body="return @0 + @1 > @2 and @0 + @2 > @1 and @1 + @2 > @0",
        reference=lambda a, b, c: 2 * max(a, b, c) < a + b + c,
        inputs=sides_input,
    ),
]
